"""Reading recipes, and writing a first one."""
