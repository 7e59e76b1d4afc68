"""Ray, storage, processes and jobs. Knows nothing of images or diffusion."""
