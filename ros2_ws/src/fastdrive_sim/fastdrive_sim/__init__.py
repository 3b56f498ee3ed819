"""A driving world: roads, traffic, an expert, and what the cameras of a rig see."""

__version__ = "0.2.0"
