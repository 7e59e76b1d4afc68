"""What a recipe will take: bytes, hours and money, from its configuration alone."""
