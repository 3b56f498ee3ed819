"""A run's scores computed again, by other means and from their definitions in docs/closed_loop.md.

This reads the lines of a run's file, or of its bag, as plain JSON; geometry is OpenCV's, and nothing is imported from
the simulator. Contacts and progress are found in the steps, not taken from the record. ``sim_rescore_motion`` has what
is judged on motion and plans, and the totals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import cv2
import numpy as np

FURNITURE = {"barrier", "traffic_cone", "lamp_post", "traffic_sign", "tree", "building"}
BESIDE_THE_ROAD = {"lamp_post", "traffic_sign", "tree", "building"}  # TTC leaves them out
RED = {"red", "red_yellow"}


class Outline:
    """A polygon, asked for one point after another."""

    def __init__(self, points: Sequence[Sequence[float]]):
        self._points = np.array(points, np.float64)
        self._low, self._high = self._points.min(axis=0) - 0.01, self._points.max(axis=0) + 0.01

    def holds(self, point: np.ndarray) -> bool:
        if not ((point >= self._low) & (point <= self._high)).all():
            return False
        near = (self._points - point).astype(np.float32).reshape(-1, 1, 2)  # OpenCV has single precision
        return cv2.pointPolygonTest(near, (0.0, 0.0), False) >= 0


def touches(first: dict, second: dict) -> bool:
    """Whether two boxes with x, y, yaw, length and width have a point in common."""
    x, y = second["x"] - first["x"], second["y"] - first["y"]
    reach = math.hypot(first["length"], first["width"]) + math.hypot(second["length"], second["width"])
    if math.hypot(x, y) > reach / 2 + 1e-6:
        return False
    one = (0.0, 0.0), (first["length"], first["width"]), math.degrees(first["yaw"])
    two = (x, y), (second["length"], second["width"]), math.degrees(second["yaw"])
    return cv2.rotatedRectangleIntersection(one, two)[0] != cv2.INTERSECT_NONE


def bearing_deg(ego: dict, other: dict) -> float:
    """Angle between the heading and the direction to the other's middle, 0 to 180."""
    angle = math.degrees(math.atan2(other["y"] - ego["y"], other["x"] - ego["x"]) - ego["yaw"])
    return abs((angle + 180.0) % 360.0 - 180.0)


def moved(thing: dict, seconds: float) -> dict:
    """So much later, at constant velocity."""
    way = seconds * thing["speed"]
    return dict(thing, x=thing["x"] + way * math.cos(thing["yaw"]), y=thing["y"] + way * math.sin(thing["yaw"]))


class ReadAgain:
    """A run as the dictionaries of its lines, and the terms that follow from where the vehicle was."""

    def __init__(self, texts: Sequence[str]):
        lines = [json.loads(text) for text in texts]
        self.head = lines[0]
        self.steps = [line for line in lines if line["type"] == "step"]
        self.plans = [line for line in lines if line["type"] == "plan"]
        self.map = self.head["map"]
        self.egos = [step["ego"] for step in self.steps]
        shape = self.head["vehicle"]
        self.length, self.width = shape["length_m"], shape["width_m"]
        self.middle = self.length / 2 - shape["rear_overhang_m"]
        self.drivable = [Outline(polygon) for polygon in self.map["drivable"]]
        self.junctions = [Outline(polygon) for polygon in self.map["junctions"]]
        self.lanes = [(Outline(lane["polygon"]), lane["is_oncoming"]) for lane in self.map["lanes"]]

    # where the vehicle is

    def box(self, ego: dict) -> dict:
        x, y = ego["x"] + self.middle * math.cos(ego["yaw"]), ego["y"] + self.middle * math.sin(ego["yaw"])
        return {"x": x, "y": y, "yaw": ego["yaw"], "length": self.length, "width": self.width}

    def center(self, ego: dict) -> np.ndarray:
        box = self.box(ego)
        return np.array([box["x"], box["y"]])

    def corners(self, ego: dict) -> np.ndarray:
        turn = np.exp(1j * ego["yaw"]) * np.array([1, 1, -1, -1]) * self.length / 2
        across = 1j * np.exp(1j * ego["yaw"]) * np.array([1, -1, -1, 1]) * self.width / 2
        return self.center(ego) + np.stack([(turn + across).real, (turn + across).imag], axis=1)

    def is_on_road(self, ego: dict) -> bool:
        return all(any(area.holds(corner) for area in self.drivable) for corner in self.corners(ego))

    def is_in_junction(self, ego: dict) -> bool:
        center = self.center(ego)
        return any(box.holds(center) for box in self.junctions)

    def is_in_several_lanes(self, ego: dict) -> bool:
        counts = [sum(lane.holds(corner) for corner in self.corners(ego)) for lane, _ in self.lanes]
        return sum(count > 0 for count in counts) > 1 and 4 not in counts

    def may_be_at_fault_beside(self, ego: dict) -> bool:
        return self.is_in_several_lanes(ego) or self.is_in_junction(ego) or not self.is_on_road(ego)

    def off_line_m(self, ego: dict) -> float:
        """Distance of the vehicle's middle from the route's line."""
        return self._nearest(self.center(ego), 0, len(self._line))[1]

    # what is around it

    def others_at(self, index: int) -> list[dict]:
        """The other road users at a step; after the last one they go on at constant velocity."""
        beyond = index - (len(self.steps) - 1)
        if beyond <= 0:
            return self.steps[index]["others"]
        return [moved(other, 0.1 * beyond) for other in self.steps[-1]["others"]]

    def contacts(self) -> Iterator[tuple[dict, dict, bool]]:
        """Each thing that is touched: the ego's state, the thing, and whether it stands for the whole run."""
        seen = set()
        for ego, step in zip(self.egos, self.steps, strict=True):
            box = self.box(ego)
            things = [(other, False) for other in step["others"]] + [(each, True) for each in self.map["obstacles"]]
            for thing, stands in things:
                if thing["instance"] not in seen and touches(box, thing):
                    seen.add(thing["instance"])
                    yield ego, thing, stands

    # the terms

    def no_collision(self) -> float:
        values = [1.0]
        for ego, thing, stands in self.contacts():
            if ego["speed"] <= 0.05:
                continue
            if not stands and thing["speed"] > 0.05 and not self._is_hit_actively(ego, thing):
                continue
            values.append(0.5 if thing["kind"] in FURNITURE else 0.0)
        return min(values)

    def _is_hit_actively(self, ego: dict, thing: dict) -> bool:
        if bearing_deg(ego, thing) > 150.0:
            return False
        ahead = self.length / 2 - 0.005  # a strip of 1 cm at the bumper
        box = self.box(ego)
        strip = dict(box, length=0.01, x=box["x"] + ahead * math.cos(ego["yaw"]))
        strip["y"] = box["y"] + ahead * math.sin(ego["yaw"])
        return touches(strip, thing) or self.may_be_at_fault_beside(ego)

    def drivable_area(self) -> float:
        return float(all(self.is_on_road(ego) for ego in self.egos))

    def driving_direction(self) -> float:
        if self.head["ending"] == "off_road":
            return 0.0
        ways = [0.0]
        for before, ego in zip(self.egos, self.egos[1:], strict=False):
            ways.append(math.dist(self.center(before), self.center(ego)) if self._is_wrong_way(ego) else 0.0)
        within = max(sum(ways[max(last - 9, 0) : last + 1]) for last in range(len(ways)))
        return 1.0 if within < 2.0 else 0.5 if within < 6.0 else 0.0

    def _is_wrong_way(self, ego: dict) -> bool:
        center = self.center(ego)
        directions = {is_oncoming for lane, is_oncoming in self.lanes if lane.holds(center)}
        if False in directions or self.is_in_junction(ego):
            return False
        return True in directions or self.off_line_m(ego) > 4.0

    def red_light(self) -> float:
        """0 where the vehicle comes onto a light's area at red; one that was on it already may leave."""
        were_on: set[int] = set()
        for index, (ego, step) in enumerate(zip(self.egos, self.steps, strict=True)):
            on = {light["instance"] for light in step["lights"] if self._is_on(ego, light["area"])}
            red = {light["instance"] for light in step["lights"] if light["state"] in RED}
            if index and (on & red) - were_on:
                return 0.0
            were_on = on
        return 1.0

    def _is_on(self, ego: dict, area: Sequence[Sequence[float]]) -> bool:
        center = self.center(ego)
        own, other = ((np.array(each) - center).astype(np.float32) for each in (self.corners(ego), area))
        return cv2.intersectConvexConvex(own, other)[0] > 0

    def progress(self) -> float:
        expert = self.head["expert_progress_m"]
        if not expert and self.head["row"]["pruner"] == "expert":
            return 1.0
        if expert[-1] <= 5.0:
            return 1.0
        until = min(len(expert), len(self.steps))
        return min(max(max(self.way_m[:until]) / expert[-1], 0.0), 1.0)

    def route_completion(self) -> float:
        return min(max(max(self.way_m) / self.map["goal_m"], 0.0), 1.0)

    def neuroncap(self) -> float:
        for ego, thing, _ in self.contacts():
            if thing["kind"] != "traffic_cone":
                velocity = ego["speed"] * np.exp(1j * ego["yaw"]) - thing["speed"] * np.exp(1j * thing["yaw"])
                start = self.egos[0]["speed"]
                reference = start if start >= 1.0 else self.map["speed_limit"]
                return 4 * max(0.0, 1 - abs(velocity) / reference)
        return 5.0

    # the route's line

    @cached_property
    def _line(self) -> np.ndarray:
        return np.array(self.map["route"], np.float64)

    @cached_property
    def _arc(self) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(self._line, axis=0).T))])

    @cached_property
    def way_m(self) -> list[float]:
        """Way along the line at each step: of the rear axle 0.01 s after the step before, when the others decided."""
        found, at = [0.0], 0
        for ego in self.egos[:-1]:
            then = moved(ego, 0.01)
            arc, _ = self._nearest(np.array([then["x"], then["y"]]), max(at - 10, 0), at + 30)
            at = int(np.searchsorted(self._arc, arc))
            found.append(arc)
        return found

    def _nearest(self, place: np.ndarray, first: int, last: int) -> tuple[float, float]:
        """Arc length of the nearest point of a part of the line, and the distance to it."""
        line, arc = self._line[first : last + 1], self._arc[first : last + 1]
        begin = line[:-1] @ np.array([1, 1j])
        along = np.diff(line, axis=0) @ np.array([1, 1j])
        seen = (complex(*place) - begin) / along  # in the frame of each segment, whose length is 1 there
        part = np.clip(seen.real, 0.0, 1.0)
        away = np.abs((seen - part) * along)
        best = int(away.argmin())
        return float(arc[best] + part[best] * abs(along[best])), float(away[best])
