"""Six images to visual tokens: resizing and patch layout, the encoder behind one Protocol, its fingerprint."""

from fastdrive_node.vision.backend import VisionBackend
from fastdrive_node.vision.fingerprint import encoder_fingerprint
from fastdrive_node.vision.preprocess import normalise, patchify, resize
from fastdrive_node.vision.tower import TorchVision

__all__ = ["TorchVision", "VisionBackend", "encoder_fingerprint", "normalise", "patchify", "resize"]
