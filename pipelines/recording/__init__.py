"""From a run's events to MLflow, by way of the disk."""
