"""Training: settings, the trainer, averages of weights, models."""
