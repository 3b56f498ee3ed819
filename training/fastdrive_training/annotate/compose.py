"""From instances to one mask: what is sure becomes foreground, what is in doubt is ignored, the rest is background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fastdrive_training.annotate.settings import BACKGROUND, IGNORE, AnnotateSettings, Group

SURE = "sure"
_KEPT_CORE = 0.5  # of a piece must be left by the band, or it has none inside


@dataclass(frozen=True)
class Instance:
    """One thing that the models found."""

    group: str
    prompt: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in px
    score: float  # of the detection, 0..1
    quality: float  # the segmenter's estimate of the mask's IoU
    mask: np.ndarray  # bool [H, W]


@dataclass(frozen=True)
class Composition:
    """A mask and why each instance is in it, or is not."""

    labels: np.ndarray  # uint8 [H, W]: 0 background, 1.. groups, 255 in doubt
    verdicts: tuple[str, ...]  # of each instance: "sure", or what its doubt is


def compose(instances: Sequence[Instance], size: tuple[int, int], settings: AnnotateSettings) -> Composition:
    """The mask of an image of ``size`` (height, width).

    Sure instances are painted group after group, the better score last. In doubt, thus ignored, are: instances with a
    low score, a poor mask, or an unlikely area; small loose pieces; a band on both sides of the border between
    foreground and background (not between two groups). Of a piece so thin that the band would take half of it, only the
    outer side is ignored.
    """
    groups = {group.name: group for group in settings.groups}
    verdicts = tuple(_verdict(instance, groups[instance.group], settings) for instance in instances)
    numbers = settings.labels
    labels, doubt = np.full(size, BACKGROUND, np.uint8), np.zeros(size, bool)
    sure = [instance for instance, verdict in zip(instances, verdicts, strict=True) if verdict == SURE]
    for instance in sorted(sure, key=lambda one: (numbers[one.group], one.score)):
        whole = _without_pieces(instance.mask, settings.composition.min_piece)
        labels[whole] = numbers[instance.group]
        doubt |= instance.mask & ~whole
    for instance, verdict in zip(instances, verdicts, strict=True):
        if verdict != SURE:
            doubt |= instance.mask
    foreground = labels != BACKGROUND
    doubt &= ~foreground
    labels[doubt | _band(foreground, settings.composition.band)] = IGNORE
    return Composition(labels, verdicts)


def _verdict(instance: Instance, group: Group, settings: AnnotateSettings) -> str:
    area = float(instance.mask.mean())
    if instance.score < settings.composition.accept:
        return "low score"
    if instance.quality < settings.composition.min_quality:
        return "poor mask"
    if area < group.min_area:
        return "small"
    return "large" if area > group.max_area else SURE


def _without_pieces(mask: np.ndarray, min_piece: float) -> np.ndarray:
    """``mask`` without its connected pieces that are smaller than the fraction ``min_piece`` of the image."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= min_piece * mask.size
    large[0] = False  # what is not in the mask
    return large[np.asarray(pieces, np.int32)]


def _band(foreground: np.ndarray, fraction: float) -> np.ndarray:
    """bool [H, W]: pixels near the border of the foreground. The image's own border is none."""
    if fraction == 0 or not foreground.any():
        return np.zeros_like(foreground)
    radius = max(1, round(fraction * foreground.shape[1]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    whole = foreground.astype(np.uint8)
    outer = cv2.dilate(whole, kernel).astype(bool) & ~foreground
    core = cv2.erode(whole, kernel).astype(bool)
    count, found = cv2.connectedComponents(whole, connectivity=8)
    pieces = np.asarray(found, np.int32)
    areas = np.bincount(pieces.ravel(), minlength=count)
    left = np.bincount(pieces[core], minlength=count)
    thick = left >= _KEPT_CORE * areas
    return outer | (foreground & ~core & thick[pieces])
