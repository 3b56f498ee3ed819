"""Graphs written part by part; what is of one VLA family alone is in ``fastdrive_export.families``."""
