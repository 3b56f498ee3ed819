"""The samples that a page shows: the worst of one pruner, and those on which pruners disagree most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from fastdrive_node.errors import FastDriveError
from fastdrive_training.evaluation.intervals import known_mean, sample_figures, steps_of
from fastdrive_training.evaluation.metrics.judge import Surroundings
from fastdrive_training.evaluation.settings import RowKey
from fastdrive_training.reports.document import image_address
from fastdrive_training.reports.open_loop.birds_eye import Path, birds_eye
from fastdrive_training.reports.open_loop.camera_tiles import RoadLine, camera_tiles, tile_width
from fastdrive_training.reports.open_loop.labels import name_of
from fastdrive_training.reports.open_loop.run_folder import SAMPLES, SUBJECT, OpenLoopRun, damaged
from fastdrive_training.reports.open_loop.source import DatasetSource, Rig
from fastdrive_training.reports.open_loop.tables import Matrix, overlap, overlap_matrix, plan_distances, spread
from fastdrive_training.reports.tiles import Tile

DISAGREEMENTS = 6  # samples
L2 = "l2_avg_to_t"
TRUTH, PLAN, WHOLE = "var(--series-1)", "var(--series-2)", "var(--series-4)"
TRUTH_RGB, PLAN_RGB, WHOLE_RGB = (86, 180, 233), (255, 154, 77), (227, 154, 198)  # the same in images
# Of many plans in one image: lightness between both modes of the page, and dashes for a second round of colors.
COLORS = ("#d1495b", "#2e8b57", "#7b6bd6", "#b8860b", "#178a9e", "#c0589f", "#6b8e23", "#8c6d5a")
DASHES = ("", "9 5", "2 5")


@dataclass(frozen=True)
class WorstSample:
    """A sample with its images; ``tiles`` is empty and ``note`` says why where there are none."""

    sample: str
    scene: str
    l2_m: float
    whole_l2_m: float | None  # of the plan on all tokens
    events: tuple[str, ...]  # what the plan did beside being far off
    about: str  # speed and command, as far as known
    tiles: list[list[Tile]]
    above: Markup
    note: str = ""


@dataclass(frozen=True)
class PlanLine:
    """One pruner's plan of a sample."""

    pruner: str
    color: str
    dashes: str
    l2_m: float | None  # None for a refused answer
    away_m: float | None  # mean distance to the subject's plan
    shared: float | None  # Jaccard index with what the subject kept
    tokens: int | None
    map: str  # data: address of an image of the kept tokens; empty where they are not known


@dataclass(frozen=True)
class DisagreedSample:
    """A sample with all plans."""

    sample: str
    scene: str
    spread_m: float
    plans: tuple[PlanLine, ...]
    above: Markup


@dataclass(frozen=True)
class Disagreement:
    """At one ratio."""

    distances: Matrix  # m
    overlaps: Matrix | None  # None where no row tells what it kept
    samples: tuple[DisagreedSample, ...]


class Scenes:
    """Makes both parts of a page.

    Args:
        drop: the ratio that is shown.
        source: None where the dataset is gone.
        own_images: whether the samples saw their own images; plans are not drawn into those of others.
    """

    def __init__(self, run: OpenLoopRun, drop: float, rig: Rig, source: DatasetSource | None, own_images: bool = True):
        self._run, self.drop, self._rig, self._source, self._own = run, drop, rig, source, own_images
        self._keys = run.pruners(drop)
        self.subject = next((key for key in self._keys if key.pruner == SUBJECT), self._keys[0])
        self._whole = next((key for key in self._keys if key.pruner == "none" and key != self.subject), None)
        kept = run.kept(drop)
        self._kept = {key: kept[key] if key in kept else [None] * len(run.samples) for key in self._keys}
        self._plans = {key: run.plans(key) for key in self._keys}
        self._l2 = {key: sample_figures(run.tables[key], L2) for key in self._keys}
        self._check_kept()

    @property
    def whole(self) -> RowKey | None:
        """``none``; None where it was not run, or nothing was pruned."""
        return self._whole

    def worst(self, count: int) -> list[WorstSample]:
        """Those of the subject with the largest L2, largest first; refused answers have none."""
        return self.pictured(_largest(self._l2[self.subject], count), "worst")

    def pictured(self, places: Sequence[int] | np.ndarray, name: str) -> list[WorstSample]:
        """Samples of the subject with their images; ``name`` makes the ids on the page unique."""
        width = tile_width(len(places))
        return [self._worst(int(sample), f"{name}-{place}", width) for place, sample in enumerate(places)]

    def disagreement(self, count: int = DISAGREEMENTS) -> Disagreement | None:
        """Of all pruners of the ratio and ``none``; None where fewer than two were run."""
        if len(self._keys) < 2:
            return None
        names = [key.pruner for key in self._keys]
        distances = plan_distances(np.stack([self._plans[key] for key in self._keys]))
        wide = spread(distances)
        kept = [self._kept[key] for key in self._keys]
        telling = [place for place, of in enumerate(kept) if any(one is not None for one in of)]
        overlaps = None
        if telling:
            overlaps = overlap_matrix([names[p] for p in telling], [kept[p] for p in telling], self._rig.tokens)
        shown = [
            self._disagreed(int(sample), place, float(wide[sample]), distances[sample])
            for place, sample in enumerate(_largest(wide, count))
        ]
        return Disagreement(Matrix(tuple(names), known_mean(distances)), overlaps, tuple(shown))

    def _check_kept(self) -> None:
        for key, lines in self._kept.items():
            known = [line for line in lines if line is not None and len(line)]
            if (
                known
                and not 0 <= min(line.min() for line in known) <= max(line.max() for line in known) < self._rig.tokens
            ):
                message = f"row {key.slug}: kept holds tokens that the VLA does not have"
                raise damaged(self._run.path / SAMPLES, message)

    def _around(self, sample: int) -> tuple[Surroundings | None, str, str]:
        """Ground truth and objects, speed and command, and why they are not known."""
        if self._source is None:
            return None, "", ""
        try:
            item = self._source.item(sample)
            about = f"{item.known_history.now.speed_mps:.1f} m/s, command {item.command.value}"
            return self._source.around(sample), about, ""
        except FastDriveError as error:
            return None, "", str(error)

    def _worst(self, sample: int, image: str, width: int) -> WorstSample:
        plan = self._plans[self.subject][sample]
        whole = None if self._whole is None else self._plans[self._whole][sample]
        around, about, note = self._around(sample)
        truth = None if around is None else around.future_m
        if whole is not None and np.isnan(whole).any():
            whole = None
        tiles: list[list[Tile]] = []
        if self._source is not None:
            road_lines = [RoadLine(truth, TRUTH_RGB, 3.0)] if truth is not None else []
            road_lines += [RoadLine(whole, WHOLE_RGB, 2.0)] if whole is not None else []
            road_lines += [RoadLine(plan, PLAN_RGB, 3.0, dots=True)]
            try:
                kept = self._kept[self.subject][sample]
                tiles = camera_tiles(self._source, self._rig, sample, kept, road_lines if self._own else (), width)
            except FastDriveError as error:
                note = note or str(error)
        hits = tuple(np.flatnonzero(self._steps("collision", sample)).tolist())
        paths = [Path("ground truth", truth, TRUTH, 6)] if truth is not None else []
        paths += [Path("plan on all tokens", whole, WHOLE, 3, "9 6")] if whole is not None else []
        paths += [Path(f"plan of {name_of(self.subject.pruner)}", plan, PLAN, 4, dots=True, hits=hits)]
        name = self._run.samples[sample]
        return WorstSample(
            sample=name,
            scene=self._run.scenes[sample],
            l2_m=float(self._l2[self.subject][sample]),
            whole_l2_m=None if self._whole is None or whole is None else float(self._l2[self._whole][sample]),
            events=self._events(sample),
            about=about,
            tiles=tiles,
            above=birds_eye(image, f"Plan and ground truth of sample {name}", paths, around),
            note=note,
        )

    def _steps(self, column: str, sample: int) -> np.ndarray:
        """bool [points] of the subject; nothing where it is not known."""
        steps = steps_of(self._run.tables[self.subject].slice(sample, 1), column)
        return np.zeros(0, bool) if steps is None else np.nan_to_num(steps[0]) > 0

    def _events(self, sample: int) -> tuple[str, ...]:
        names = {"collision": "collides", "raster_collision": "touches a vehicle on the raster"}
        names |= {"off_drivable": "leaves the road", "intersection": "crosses its boundary"}
        found = []
        for column, text in names.items():
            steps = np.flatnonzero(self._steps(column, sample))
            if len(steps):
                found.append(f"{text} at {0.5 * (steps[0] + 1):g} s")
        return tuple(found)

    def _disagreed(self, sample: int, place: int, wide: float, distances: np.ndarray) -> DisagreedSample:
        around = self._around(sample)[0]
        shared = overlap([self._kept[key][sample] for key in self._keys], self._rig.tokens)
        own = self._keys.index(self.subject)
        lines, paths = [], []
        for number, key in enumerate(self._keys):
            line = self._plan_line(key, sample, number, distances[own, number], shared[own, number])
            lines.append(line)
            if line.l2_m is not None:
                width = 5 if key == self.subject else 3
                paths.append(Path(name_of(key.pruner), self._plans[key][sample], line.color, width, line.dashes))
        paths.sort(key=lambda path: path.width)
        if around is not None:
            paths.insert(0, Path("ground truth", around.future_m, TRUTH, 9))
        name = self._run.samples[sample]
        above = birds_eye(f"plans-{place}", f"All plans of sample {name}", paths, around)
        return DisagreedSample(name, self._run.scenes[sample], wide, tuple(lines), above)

    def _plan_line(self, key: RowKey, sample: int, number: int, away: float, shared: float) -> PlanLine:
        kept, l2 = self._kept[key][sample], self._l2[key][sample]
        return PlanLine(
            pruner=key.pruner,
            color=self._color(key, number),
            dashes=DASHES[number // len(COLORS) % len(DASHES)]
            if key.pruner not in (self.subject.pruner, "none")
            else "",
            l2_m=_known(l2),
            away_m=_known(away),
            shared=_known(shared),
            tokens=None if kept is None else len(kept),
            map="" if kept is None else token_map(self._rig, kept),
        )

    def _color(self, key: RowKey, number: int) -> str:
        if key == self.subject:
            return PLAN
        return "var(--ink)" if key.pruner == "none" else COLORS[number % len(COLORS)]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the largest values that are known, largest first; ``count`` at most."""
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    return order[: min(count, int((~np.isnan(values)).sum()))]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def token_map(rig: Rig, kept: np.ndarray) -> str:
    """An image of the kept tokens, a pixel each, cameras side by side; a ``data:`` address."""
    rows, columns = rig.grid
    image = np.full((rows, len(rig.cameras) * (columns + 1) - 1), 128, np.uint8)
    for place, mask in enumerate(rig.mask(kept)):
        left = place * (columns + 1)
        image[:, left : left + columns] = np.where(mask, 255, 0)
    return image_address(image, "png", optimize=True)


def fraction_of(values: Sequence[float], value: float) -> float:
    """Where a value lies between 0 and the largest, for the shade of a cell; 0 where nothing is known."""
    top = max((one for one in values if not np.isnan(one)), default=0.0)
    return 0.0 if np.isnan(value) or top <= 0 else float(value / top)
