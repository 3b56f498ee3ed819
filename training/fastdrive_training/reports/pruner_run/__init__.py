"""The page of a training run: what it learned, seen in curves and pictures, and whether it can be believed."""
