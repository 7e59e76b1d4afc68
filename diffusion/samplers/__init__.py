"""Solvers of the probability flow ODE and of its SDE, from noise to latents."""
