"""What runs in the vehicle: cameras in, a trajectory out."""

__version__ = "0.2.0"
