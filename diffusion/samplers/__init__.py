"""Solvers of the probability flow ODE, from noise to latents."""
