"""For ``colcon build``, whose ament_python build runs setup.py; everything is in pyproject.toml."""

from setuptools import setup

setup()
