"""What runs, why, and how it is committed."""
