"""A six-camera driving world: roads, traffic, an expert, and what the cameras see."""

__version__ = "0.2.0"
