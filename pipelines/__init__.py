"""Datasets, stages, recipes, tracking and the command line: where cluster and diffusion meet."""
