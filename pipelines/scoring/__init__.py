"""What an evaluation measures and says."""
