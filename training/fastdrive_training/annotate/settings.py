"""What is looked for, by which models, and how sure a detection must be; read from YAML."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, field
from pathlib import Path

import yaml

from fastdrive_node.errors import InputError
from fastdrive_training.engine.config import RecipeError, parse_recipe, recipe_class, set_keys

SHIPPED = Path(__file__).parent / "foreground_groups.yaml"
BACKGROUND, IGNORE = 0, 255  # ids in a mask; group g of the list (from 0) is g + 1
RESERVED = ("background", "ignore")


@recipe_class
class Group:
    """One kind of foreground. Areas are fractions of the image."""

    name: str
    prompts: tuple[str, ...]
    min_area: float = 5e-5  # a smaller instance is in doubt
    max_area: float = 0.7  # so is a larger one, which is mostly a box around everything

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in RESERVED:
            raise ValueError(f"name: lower-case letters, digits and _ only, and none of {RESERVED}, is {self.name!r}")
        if not self.prompts:
            raise ValueError(f"prompts: {self.name} needs at least one")
        for prompt in self.prompts:
            if not re.fullmatch(r"[a-z0-9][a-z0-9 '-]*", prompt):
                raise ValueError(f"prompts: lower-case words without a full stop, {self.name} has {prompt!r}")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(f"min_area, max_area: 0 <= min < max <= 1, are {self.min_area}, {self.max_area}")


@recipe_class
class Models:
    """Names on the Hugging Face hub or folders, with revisions (a commit, branch or tag) for the hub."""

    detector: str = "IDEA-Research/grounding-dino-base"
    segmenter: str = "facebook/sam-vit-huge"
    detector_revision: str | None = None
    segmenter_revision: str | None = None


@recipe_class
class DetectionSettings:
    """What an image's instances depend on, besides models and prompts."""

    keep: float = 0.2  # the lowest score
    nms_iou: float = 0.7
    max_detections: int = 100
    one_caption: bool = True

    def __post_init__(self) -> None:
        _fraction("keep", self.keep)
        _fraction("nms_iou", self.nms_iou)
        if self.max_detections < 1:
            raise ValueError("max_detections: must be at least 1")


@recipe_class
class CompositionSettings:
    """How a mask follows from the instances; may be changed without the models."""

    accept: float = 0.35  # score of an instance that counts
    min_quality: float = 0.7  # SAM's estimate of the IoU
    band: float = 0.002  # of the image's width, to both sides of the border
    min_piece: float = 2e-5  # fraction of the image

    def __post_init__(self) -> None:
        for name in ("accept", "min_quality", "min_piece"):
            _fraction(name, getattr(self, name))
        if not 0 <= self.band <= 0.1:
            raise ValueError(f"band: must be from 0 to 0.1, is {self.band}")


@recipe_class
class AnnotateSettings:
    """The whole configuration."""

    groups: tuple[Group, ...]  # from back to front
    models: Models = field(default_factory=Models)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    composition: CompositionSettings = field(default_factory=CompositionSettings)

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        prompts = [prompt for group in self.groups for prompt in group.prompts]
        for what, words in (("name", names), ("prompt", prompts)):
            twice = {word for word in words if words.count(word) > 1}
            if twice:
                raise ValueError(f"groups: the {what} {min(twice)!r} is there twice")
        if not 1 <= len(self.groups) < IGNORE:
            raise ValueError("groups: at least one, at most 254")

    @property
    def labels(self) -> dict[str, int]:
        """Ids in the masks by name."""
        groups = {group.name: number for number, group in enumerate(self.groups, start=1)}
        return {"background": BACKGROUND, **groups, "ignore": IGNORE}

    def detection_metadata(self) -> dict:
        """What the instances depend on: prompts by group and the detection's settings."""
        return {"prompts": {group.name: list(group.prompts) for group in self.groups}, **asdict(self.detection)}

    def composition_metadata(self) -> dict:
        """What the masks depend on besides the instances; the groups in painting order."""
        areas = {group.name: [group.min_area, group.max_area] for group in self.groups}
        return {"order": list(areas), "areas": areas, **asdict(self.composition)}


def load_settings(path: str | Path | None = None, assignments: list[str] | None = None) -> AnnotateSettings:
    """The shipped configuration or that of a YAML file, with ``key=value`` overrides.

    Raises InputError that names the file and the key.
    """
    path = SHIPPED if path is None else Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a YAML file of foreground groups") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no valid YAML ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a mapping with the key groups")
    try:
        set_keys(content, assignments or [])
        return parse_recipe(AnnotateSettings, content)
    except RecipeError as error:
        raise InputError(f"{path}: {error}") from None


def short_digest(metadata: dict) -> str:
    """16 hexadecimal digits that stand for JSON metadata."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: must be from 0 to 1, is {value}")
