"""For ``colcon build``, whose ament_python build runs setup.py; everything is in pyproject.toml."""

from setuptools import setup

distribution = setup()
# colcon reads the repr of these fields as Python literals, which that of a SpecifierSet is not.
distribution.python_requires = distribution.metadata.python_requires = str(distribution.python_requires)
