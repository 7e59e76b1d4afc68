"""Whether generated images help a classifier that is judged on real ones."""
