"""When, and in which pixels, the cameras see the pedestrians of the scenario step-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastdrive_sim.types import Camera, Snapshot, Views

SEEN_SHARE = 2e-4  # of an image's pixels in one camera: a pedestrian of fewer is hidden


@dataclass
class StepOutLog:
    """The pedestrians of one scene, keyframe after keyframe.

    A pedestrian *appears* once: in the first keyframe that sees it after it has set off, where the keyframe before did
    not see it. One that is in sight in the scene's first keyframe, or when it sets off, appears not before it has been
    hidden again.
    """

    rig: Sequence[Camera]
    _numbers: dict[int, int] = field(default_factory=dict)  # of each instance, from 1
    _hidden: set[int] = field(default_factory=set)  # instances that the last keyframe did not see
    _since: dict[int, int] = field(default_factory=dict)  # keyframes since they appeared

    def add(self, snapshot: Snapshot, views: Views) -> tuple[list[dict], np.ndarray]:
        """One keyframe.

        Returns:
            An entry for each pedestrian within reach: ``number`` (in the scene, from 1), ``crossing`` (has set off),
            ``gap_m`` (from the front bumper, along the lane), ``pixels`` {camera: visible pixels} and
            ``keyframes_since_visible``, 0 in the keyframe in which it appears, None before.
            uint8 [C, H, W], the number of the pedestrian that a pixel shows; 0: none that has appeared.
        """
        numbers = np.zeros(views.instance.shape, np.uint8)
        entries = []
        for step_out in snapshot.step_outs:
            instance = step_out.instance
            number = self._numbers.setdefault(instance, len(self._numbers) + 1)
            seen = views.instance == instance
            counts = seen.sum(axis=(1, 2))
            since = self._advance(instance, bool(counts.max() >= SEEN_SHARE * seen[0].size), step_out.crossing)
            if since is not None:
                numbers[seen] = number
            entries.append(
                {
                    "number": number,
                    "crossing": step_out.crossing,
                    "gap_m": step_out.gap_m,
                    "pixels": {camera.name: int(n) for camera, n in zip(self.rig, counts, strict=True) if n},
                    "keyframes_since_visible": since,
                }
            )
        return entries, numbers

    def _advance(self, instance: int, visible: bool, crossing: bool) -> int | None:
        if instance in self._since:
            self._since[instance] += 1
        elif visible and crossing and instance in self._hidden:
            self._since[instance] = 0
        if visible:
            self._hidden.discard(instance)
        else:
            self._hidden.add(instance)
        return self._since.get(instance)
