"""The scenario step-out: pedestrians step out in front of the vehicle from behind parked trucks and buses.

Its dataset says for each keyframe which of them the cameras see, since when, and in which pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from fastdrive_sim.expert import FRONT_M
from fastdrive_sim.geometry import box_corners
from fastdrive_sim.population import START_M
from fastdrive_sim.roads import LEFT_EDGE_M, RIGHT_EDGE_M, Route
from fastdrive_sim.scenarios.base import Scenario, SceneLog
from fastdrive_sim.traffic import VEHICLES, Pedestrian, Traffic, random_color
from fastdrive_sim.types import Camera, Snapshot, Thing, Views, World

_STREAM = 1  # of random numbers: that of the seed alone stays for the world
EYE_M = 1.7  # rear axle to the front camera
STEP_OUT_S = (2.4, 3.2)  # at the limit, the time that the vehicle is away when a pedestrian sets off
_NEAREST_M = 10.0  # from here to where the pedestrian sets off, nobody in the vehicle sees it
_KERB_GAP_M = 0.15  # between the road's edge and what hides a pedestrian
_AHEAD_M = 0.75  # the pedestrian stands so far in front of it (behind it, for the oncoming lane)
_STRAIGHTEST = 1 / 30  # 1/m; in tighter bends nothing parks
_WALK_MPS = 1.6  # nobody on a pavement is faster
_REACH_M = 60.0  # along the lane; pedestrians further away are not recorded
VISIBLE_FRACTION = 2e-4  # of an image's pixels in one camera: a pedestrian of fewer is hidden


@dataclass(frozen=True)
class StepOut:
    """A pedestrian of this scenario at one instant."""

    instance: int
    crossing: bool  # has set off
    gap_m: float  # along the lane from the front bumper


class StepOutScenario(Scenario):
    summary = "pedestrians step out in front of the vehicle from behind parked trucks and buses"

    def prepare(
        self, world: World, traffic: Traffic, seed: int, limit: float, seconds: float, ids: count
    ) -> tuple[World, Traffic]:
        """Adds hidden pedestrians along the route, and removes what would be in their way.

        Nobody drives ahead in the own lane: a leader would hide the pedestrians or run into them.
        """
        rng = np.random.default_rng((seed, _STREAM))
        spots = find_spots(rng, traffic.route, limit, ids)
        hidden = [_pedestrian(rng, spot, ids) for spot in spots]
        kept = [thing for thing in world.things if not any(_in_the_way(thing, spot, traffic.route) for spot in spots)]
        vehicles = [vehicle for vehicle in traffic.vehicles if vehicle.direction < 0 or vehicle.s < START_M]
        others = [walker for walker in traffic.pedestrians if not any(_meets(walker, spot, seconds) for spot in spots)]
        moved = replace(traffic, vehicles=vehicles, pedestrians=others + hidden)
        return replace(world, things=(*kept, *(spot.cover for spot in spots))), moved

    def observe(self, traffic: Traffic, ego_s: float) -> tuple[StepOut, ...]:
        """The pedestrians ahead and behind who wait behind something, or came out from there."""
        front = ego_s + FRONT_M
        return tuple(
            StepOut(p.instance, p.crossing, round(p.s - front, 2))
            for p in traffic.pedestrians
            if p.clear_m is not None and abs(p.s - ego_s) < _REACH_M
        )

    def open_log(self, rig: Sequence[Camera]) -> StepOutLog:
        return StepOutLog(rig)


@dataclass(frozen=True)
class Spot:
    """A place where a pedestrian waits, hidden by a parked truck or bus."""

    s: float  # arc length of the pedestrian
    offset: float  # of the pedestrian, left of the lane's middle
    clear: float  # offset from which on a driver sees it
    trigger: float  # m from the front bumper; it sets off then
    cover: Thing


def find_spots(rng: np.random.Generator, route: Route, limit: float, ids: count) -> list[Spot]:
    """Places along the route, 30 m or more apart, where a truck or bus hides a pedestrian from the vehicle."""
    spots, s = [], START_M + rng.uniform(25, 40)
    while s < route.length - 30:
        spot = _draw_spot(rng, route, s, limit, ids) if _is_open(route, s) else None
        if spot is not None and is_hidden(spot, route):
            spots.append(spot)
            s += rng.uniform(30, 50)
        else:
            s += 2.0
    return spots


def _is_open(route: Route, s: float) -> bool:
    """Whether a vehicle may park before ``s``: at no junction, and in no tight bend."""
    clear = all(not junction.s_stop - 5 < s < junction.s_out + 14 for junction in route.junctions)
    return clear and max(abs(route.curvature_at(s - away)) for away in (2.0, 5.0, 8.0)) < _STRAIGHTEST


def _draw_spot(rng: np.random.Generator, route: Route, s: float, limit: float, ids: count) -> Spot:
    kind = str(rng.choice(["truck", "bus"], p=[0.7, 0.3]))
    length, width, _ = VEHICLES[kind]
    right = bool(rng.random() < 0.7)
    middle_s = s - _AHEAD_M - length / 2
    bow = abs(route.curvature_at(middle_s))
    gap = _KERB_GAP_M + bow * length**2 / 8  # its ends reach over the edge of a bend
    edge = RIGHT_EDGE_M - gap if right else LEFT_EDGE_M + gap
    offset = edge + (-width / 2 if right else width / 2)
    x, y, yaw = route.at(middle_s, offset)
    look = {"color": random_color(rng), "variant": int(rng.integers(99))}
    cover = Thing(next(ids), kind, x, y, yaw if right else yaw + math.pi, VEHICLES[kind], **look)
    return Spot(s, offset, edge, limit * float(rng.uniform(*STEP_OUT_S)), cover)


def is_hidden(spot: Spot, route: Route) -> bool:
    """Whether the cover is between the front camera and all of the pedestrian until it sets off."""
    away = np.arange(_NEAREST_M, spot.trigger + FRONT_M - EYE_M + 8, 3.0)
    eyes = np.array([route.at(spot.s - metres)[:2] for metres in away])
    sides = np.array([route.at(spot.s, spot.offset + side)[:2] for side in (-0.3, 0.3)])
    fraction = np.linspace(0, 1, 101)[:, None, None, None]
    sight = eyes[:, None] + fraction * (sides - eyes[:, None])  # points of each line of sight [101, eyes, sides, 2]
    return bool(_inside(sight, _footprint(spot.cover), 0.0).any(axis=0).all())


def _footprint(thing: Thing) -> np.ndarray:
    """The corners of a thing on the ground, float64 [4, 2], in the order of ``box_corners``."""
    return box_corners(thing)[::2, :2]


def _inside(points: np.ndarray, corners: np.ndarray, margin: float) -> np.ndarray:
    """bool [...]: which points [..., 2] lie in the rectangle of a ``_footprint``, widened by ``margin`` m."""
    origin, along, across = corners[0], corners[2] - corners[0], corners[1] - corners[0]
    inside = np.ones(points.shape[:-1], bool)
    for axis in (along, across):
        length = float(np.linalg.norm(axis))
        reach = (points - origin) @ axis / length
        inside &= (reach > -margin) & (reach < length + margin)
    return inside


def _pedestrian(rng: np.random.Generator, spot: Spot, ids: count) -> Pedestrian:
    across = float(rng.uniform(1.4, 2.2)) * (1 if spot.offset < 0 else -1)
    return Pedestrian(
        next(ids),
        random_color(rng),
        spot.s,
        spot.offset,
        across=across,
        trigger_m=spot.trigger,
        variant=int(rng.integers(99)),
        clear_m=spot.clear,
    )


def _in_the_way(thing: Thing, spot: Spot, route: Route) -> bool:
    """Whether something that stands overlaps the cover, or the way that the pedestrian takes."""
    if math.hypot(thing.x - spot.cover.x, thing.y - spot.cover.y) > 40:
        return False
    corners = _footprint(spot.cover)
    a, b = np.meshgrid(np.linspace(0, 1, 13), np.linspace(0, 1, 5))
    ground = corners[0] + a.reshape(-1, 1) * (corners[2] - corners[0]) + b.reshape(-1, 1) * (corners[1] - corners[0])
    way = np.array([route.at(spot.s, offset)[:2] for offset in np.linspace(-6, 9, 31)])
    overlaps = _inside(np.concatenate([ground, way]), _footprint(thing), 0.5).any()
    return bool(overlaps or _inside(np.array([thing.x, thing.y]), corners, 0.5))


def _meets(walker: Pedestrian, spot: Spot, seconds: float) -> bool:
    """Whether another pedestrian would come to the cover, or cross near it."""
    if walker.trigger_m:
        return abs(walker.s - spot.s) < 25
    same_side = (walker.offset < 0) == (spot.offset < 0)
    return same_side and abs(walker.s - spot.s) < _WALK_MPS * (seconds + 2) + spot.cover.size[0]


@dataclass
class StepOutLog(SceneLog):
    """The pedestrians of one scene, keyframe after keyframe.

    A pedestrian *appears* once: in the first keyframe that sees it after it has set off, if the keyframe before did
    not see it. One that is in sight in the scene's first keyframe, or when it sets off, does not appear before it has
    been hidden again.
    """

    rig: Sequence[Camera]
    _numbers: dict[int, int] = field(default_factory=dict)  # of each instance, from 1
    _hidden: set[int] = field(default_factory=set)  # instances that the last keyframe did not see
    _since: dict[int, int] = field(default_factory=dict)  # keyframes since they appeared

    def add(self, snapshot: Snapshot, views: Views) -> tuple[dict, dict[str, np.ndarray]]:
        """One keyframe.

        Returns:
            ``step_outs``: an entry for each pedestrian within reach: ``number`` (in the scene, from 1), ``crossing``
            (has set off), ``gap_m`` (from the front bumper, along the lane), ``pixels`` {camera: visible pixels} and
            ``keyframes_since_visible``, 0 in the keyframe in which it appears, None before.
            ``step_out``: uint8 [C, H, W], the number of the pedestrian that a pixel shows; 0: none that has appeared.
        """
        numbers = np.zeros(views.instance.shape, np.uint8)
        entries = []
        for step_out in snapshot.observed:
            instance = step_out.instance
            number = self._numbers.setdefault(instance, len(self._numbers) + 1)
            seen = views.instance == instance
            counts = seen.sum(axis=(1, 2))
            since = self._advance(instance, bool(counts.max() >= VISIBLE_FRACTION * seen[0].size), step_out.crossing)
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
        return {"step_outs": entries}, {"step_out": numbers}

    def counts(self) -> dict[str, int]:
        """``step_outs``: the pedestrians that have appeared."""
        return {"step_outs": len(self._since)}

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
