"""Past images, for VLAs that read several frames of a camera: their visual tokens are kept, so each is encoded once."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from fastdrive_node.errors import FrameSetError
from fastdrive_node.families import VisualTokens, Vla

_MAX_SETS = 256


@dataclass(frozen=True)
class _Past:
    t0_ns: int
    visual: VisualTokens
    missing: frozenset[str]  # cameras whose image was not there


class FrameMemory:
    """The encoded sets of the last seconds of one VLA; serves one caller at a time."""

    def __init__(self, vla: Vla):
        self._cameras, self._images, self._spec = vla.spec.cameras, vla.images, vla.spec.frames
        self._sets: deque[_Past] = deque(maxlen=_MAX_SETS)

    def add(self, t0_ns: int, visual: VisualTokens, missing: Collection[str] = ()) -> None:
        """Store a set. One that is not later than those before starts anew: time has jumped back."""
        if self._spec is None:
            return
        if self._sets and t0_ns <= self._sets[-1].t0_ns:
            self._sets.clear()
        self._sets.append(_Past(t0_ns, visual, frozenset(missing)))
        horizon_ns = t0_ns - self._spec.span_ns
        while self._sets[0].t0_ns < horizon_ns:
            self._sets.popleft()

    def gather(self, t0_ns: int, visual: VisualTokens) -> tuple[VisualTokens, tuple[int, ...]]:
        """The tokens of all images that the VLA reads at ``t0_ns``, whose set has just been added.

        Args:
            visual: of the set, complete.

        Returns:
            The tokens in the order of the prompt, and which of ``Vla.images`` they are.

        Raises:
            FrameSetError: a past image is missing, and the VLA's rule is to refuse.
        """
        if self._spec is None:
            return visual, tuple(range(len(self._images)))
        found, present = [], []
        for place, (camera, step) in enumerate(self._images):
            past = self._at(t0_ns, step)
            if past is not None and (step == 0 or self._cameras[camera] not in past.missing):
                found.append((past.visual, camera))
                present.append(place)
            elif self._spec.missing == "refuse":
                raise FrameSetError(
                    f"{self._cameras[camera]}: no image {step * self._spec.interval_s:g} s before t0 (within "
                    f"{self._spec.tolerance_s:g} s); the model reads {self._spec.count} frames of each camera"
                )
        return VisualTokens.of_images(found), tuple(present)

    def _at(self, t0_ns: int, step: int) -> _Past | None:
        assert self._spec is not None
        wanted_ns = t0_ns - round(step * self._spec.interval_s * 1e9)
        near = min(self._sets, key=lambda past: abs(past.t0_ns - wanted_ns), default=None)
        if near is None or (step == 0) != (near.t0_ns == t0_ns):
            return None
        return near if abs(near.t0_ns - wanted_ns) <= self._spec.tolerance_s * 1e9 else None
