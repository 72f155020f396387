"""What is solved: equations, noise, their interpretation, and the span of a solve."""
