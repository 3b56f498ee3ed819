"""What runs in the vehicle: six cameras in, a trajectory out."""

__version__ = "0.2.0"
