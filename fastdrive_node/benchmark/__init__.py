"""This package against plain transformers on one machine: the two sides, their timing, and whether they agree."""
