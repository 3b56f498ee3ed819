"""Pruners to compare with, one file each; ``pruning.registry`` has their names."""
