"""The page of a training run: curves, images and health checks."""
