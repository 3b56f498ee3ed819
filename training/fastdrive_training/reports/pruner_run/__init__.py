"""The page of a training run: what it learned, seen in curves and images, and whether it can be believed."""
