"""This package against plain transformers on one machine: both implementations, their timing and agreement."""
