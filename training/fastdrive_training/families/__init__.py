"""What training needs of a VLA family beyond ``fastdrive_node.families``."""

from fastdrive_training.families.qwen2_5_vl import SPECIAL, build_model

__all__ = ["SPECIAL", "build_model"]
