"""The plan record: what became of one frame set, as JSON. The node writes it, and `replay` and `plan --json` too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.sync.modes import ModeStatus, code_of
from fastdrive_node.sync.outcomes import Outcome
from fastdrive_node.types import SUPERSEDED, Command, DeadlineChoice, KeptTokens, Plan, Refusal

PLAN_LINE = ("t0_ns", "waypoints", "dt_s", "mode", "text")  # the fields of a line of plans.jsonl
REFUSAL_LINE = ("t0_ns", "kind", "stage", "reason")  # and of unplanned.jsonl
MODE = "mode"  # kind of the record of a change of the operating mode, see ``mode_record``
STATED = ("headings_rad", "speeds_mps")  # of a plan, where the model's answer states them
MAX_TOKENS = 1 << 24  # of one frame set; a record that claims more is damaged


@dataclass(frozen=True)
class PlanRecord:
    """A plan, or a refusal with its reason, and what the node knows beside it. Times in milliseconds of wall time."""

    result: Plan | Refusal
    command: Command = Command.NONE
    waited_ms: float = 0.0  # from the complete frame set to the start of planning
    planning_ms: float = 0.0
    latency_ms: float = 0.0  # from t0 to publishing, in the node's time
    spread_s: float | None = None  # between the exposures; None where the set was not complete
    speed_mps: float | None = None  # at t0; None where there was no odometry

    @classmethod
    def of_outcome(cls, outcome: Outcome, latency_ms: float) -> PlanRecord:
        return cls(
            outcome.result,
            outcome.command,
            outcome.waited_ms,
            outcome.planning_ms,
            latency_ms,
            None if outcome.frames is None else outcome.frames.spread_s,
            None if outcome.history is None else outcome.history.now.speed_mps,
        )

    @property
    def t0_ns(self) -> int:
        return self.result.t0_ns

    @property
    def plan(self) -> Plan:
        """The result of a record of kind ``plan``."""
        assert isinstance(self.result, Plan)
        return self.result

    @property
    def kind(self) -> str:
        """``plan``, ``refused``, or ``superseded``."""
        if isinstance(self.result, Plan):
            return "plan"
        return SUPERSEDED if self.result.stage == SUPERSEDED else "refused"

    @property
    def reason(self) -> str:
        """Stage and reason of a refusal, the stage once; empty for a plan."""
        if isinstance(self.result, Plan):
            return ""
        stage, reason = self.result.stage, self.result.reason
        return reason if reason.startswith(f"{stage}: ") else f"{stage}: {reason}"

    def to_dict(self) -> dict:
        """The record as JSON values; ``kept`` holds the indices of the tokens that the language model sees."""
        values = {name: getattr(self, name) for name in ("kind", "t0_ns", "waited_ms", "planning_ms", "latency_ms")}
        values["command"] = self.command.value
        values |= {name: value for name in ("spread_s", "speed_mps") if (value := getattr(self, name)) is not None}
        result = self.result
        if isinstance(result, Refusal):
            return {**values, "stage": result.stage, "code": code_of(result), "reason": result.reason}
        tokens = None
        if (kept := result.kept) is not None:
            indices = [int(index) for index in kept.indices]
            tokens = {"grid": list(kept.grid), "kept": indices, "temporal": kept.temporal}
            if kept.current is not None:
                tokens["current"] = list(kept.current)
            if kept.grids is not None:
                tokens["grids"] = [list(grid) for grid in kept.grids]
        return {
            **values,
            "waypoints": [[float(x), float(y)] for x, y in result.waypoints_m],
            "dt_s": result.dt_s,
            "mode": result.mode,
            **({} if result.shifted_ns is None else {"stamp_ns": result.shifted_ns}),
            "text": result.text,
            "stage_ms": dict(result.stage_ms),
            "tokens": tokens,
            **{name: getattr(result, name).tolist() for name in STATED if getattr(result, name) is not None},
            **({"derived": list(result.derived)} if result.derived else {}),
            **({"warnings": list(result.warnings)} if result.warnings else {}),
            **({"reused_cameras": result.reused_cameras} if result.reused_cameras else {}),
            **({} if (due := result.deadline) is None else {"deadline": {**asdict(due), "reason": due.reason}}),
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> PlanRecord:
        """The record that ``to_dict`` gave; a plan comes without its scores, which are not written.

        Raises:
            InputError: a field is missing or of another type; the text names it.
        """
        try:
            result = _plan(values) if values["kind"] == "plan" else _refusal(values)
            return cls(
                result,
                Command(values["command"]),
                *(float(values[name]) for name in ("waited_ms", "planning_ms", "latency_ms")),
                *(None if values.get(name) is None else float(values[name]) for name in ("spread_s", "speed_mps")),
            )
        except KeyError as error:
            raise InputError(f"plan record: {error.args[0]}: missing; another version of the node wrote it") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = " ".join(str(error).split())[:160]
            raise InputError(f"plan record: not readable ({detail}); another version of the node wrote it") from error

    def line(self) -> dict:
        """The line of ``plans.jsonl``, or of ``unplanned.jsonl``."""
        values = self.to_dict()
        names = PLAN_LINE if self.kind == "plan" else REFUSAL_LINE
        return {name: values[name] for name in (*names, "stamp_ns") if name in values}


def mode_record(status: ModeStatus, t_ns: int, fallback: str) -> dict:
    """The record of a change of the mode.

    Args:
        t_ns: the node's time.
        fallback: what consumers get in place of plans: "none", "empty" or "brake".
    """
    return {
        "kind": MODE,
        "t_ns": t_ns,
        "mode": status.mode.value,
        "code": status.reason.code,
        "reason": status.reason.text,
        "cameras": dict(status.cameras),
        "fallback": fallback,
    }


def _plan(values: Mapping) -> Plan:
    waypoints = np.array(values["waypoints"], np.float64)
    if waypoints.ndim != 2 or waypoints.shape[1] != 2 or not np.isfinite(waypoints).all():
        raise ValueError("waypoints: expected a list of finite [x, y]")
    return Plan(
        t0_ns=int(values["t0_ns"]),
        waypoints_m=waypoints,
        dt_s=float(values["dt_s"]),
        text=str(values["text"]),
        mode=str(values["mode"]),
        kept=None if values["tokens"] is None else _tokens(values["tokens"]),
        stage_ms={str(name): float(ms) for name, ms in values["stage_ms"].items()},
        derived=tuple(map(str, values.get("derived", ()))),
        warnings=tuple(map(str, values.get("warnings", ()))),
        shifted_ns=None if values.get("stamp_ns") is None else int(values["stamp_ns"]),
        headings_rad=_stated(values, "headings_rad", len(waypoints)),
        speeds_mps=_stated(values, "speeds_mps", len(waypoints)),
        deadline=None if values.get("deadline") is None else _deadline(values["deadline"]),
        reused_cameras=int(values.get("reused_cameras", 0)),
    )


def _deadline(values: Mapping) -> DeadlineChoice:
    return DeadlineChoice(
        deadline_ms=float(values["deadline_ms"]),
        elapsed_ms=float(values["elapsed_ms"]),
        predicted_ms=float(values["predicted_ms"]),
        keep=int(values["keep"]),
        wanted=int(values["wanted"]),
        load=float(values["load"]),
    )


def _stated(values: Mapping, name: str, points: int) -> np.ndarray | None:
    if values.get(name) is None:
        return None
    numbers = np.array(values[name], np.float64)
    if numbers.shape != (points,) or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected {points} finite numbers")
    return numbers


def _tokens(values: Mapping) -> KeptTokens:
    cameras, rows, columns = (int(value) for value in values["grid"])
    total = cameras * rows * columns
    indices = np.array(values["kept"], np.int64)
    if min(cameras, rows, columns) < 1 or total > MAX_TOKENS:
        raise ValueError(f"tokens.grid: {cameras} x {rows} x {columns} is no token grid")
    if indices.ndim != 1 or (np.diff(indices) <= 0).any() or (indices < 0).any() or (indices >= total).any():
        raise ValueError(f"tokens.kept: expected ascending indices below {total}")
    grids = None if values.get("grids") is None else tuple((int(r), int(c)) for r, c in values["grids"])
    if grids is not None and (any(min(grid) < 1 for grid in grids) or sum(r * c for r, c in grids) != total):
        raise ValueError(f"tokens.grids: expected grids of {total} tokens together")
    images = cameras if grids is None else len(grids)
    current = None if values.get("current") is None else tuple(map(int, values["current"]))
    if current is not None and not all(0 <= image < images for image in current):
        raise ValueError(f"tokens.current: expected images below {images}")
    return KeptTokens(indices, None, (cameras, rows, columns), str(values["temporal"]), current, grids)


def _refusal(values: Mapping) -> Refusal:
    stage, code = str(values["stage"]), str(values.get("code", ""))
    return Refusal(int(values["t0_ns"]), str(values["reason"]), stage, "" if code == stage else code)
