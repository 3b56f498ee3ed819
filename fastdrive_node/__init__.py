"""What runs in the vehicle: six cameras in, a trajectory out."""

__version__ = "0.1.0"
