"""What lies around the pixels of JPEG, PNG and WebP files, read in plain Python: no decoder sees it."""
