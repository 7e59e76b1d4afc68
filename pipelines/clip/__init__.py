"""Models that put images and their captions into one space (Radford et al., 2021), in open_clip's format."""
