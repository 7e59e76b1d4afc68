"""What is in a store: shown to people, and cleared of what nothing uses."""
