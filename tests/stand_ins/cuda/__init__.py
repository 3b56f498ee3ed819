"""Stands for cuda-python 11.8."""
