"""Captions by open_clip's CoCa (Yu et al., 2022): its decoder step by step, and the search for words."""
