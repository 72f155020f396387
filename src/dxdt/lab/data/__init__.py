"""Images and trajectories to learn from, and the random choices of a batch."""
