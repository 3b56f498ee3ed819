"""Another model, pruner or engine while the node runs: it is loaded in a second process and then takes over.

The node's executor calls everything here. What a change of parameters with a part of the model says takes effect as a
whole when the new planner is ready, or goes back as a whole when it cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.families.spec import chosen_vla_dir, load_spec
from fastdrive_node.ros.parameters import MODEL_PARAMETERS, Settings
from fastdrive_node.ros.planner_factory import LoadedPlanner, PlannerFactory

NO_EXCHANGE, EXCHANGING = "none", "loading"  # values of the key ``exchange``, beside "failed: reason"


@dataclass(frozen=True)
class Pending:
    """An exchange in progress."""

    values: Mapping[str, Any]  # parameters that take effect with the new planner
    before: Mapping[str, Any]  # what they go back to
    candidate: LoadedPlanner | None  # None: it could not even be started
    error: FastDriveError | None = None

    def state(self) -> str:
        """ "loading", "ready" or "failed"."""
        supervised = None if self.candidate is None else self.candidate.supervised
        phase = "down" if supervised is None else supervised.state().phase
        return {"ready": "ready", "down": "failed"}.get(phase, EXCHANGING)

    @property
    def reason(self) -> str:
        """Why it failed."""
        supervised = None if self.candidate is None else self.candidate.supervised
        text = str(self.error) if supervised is None else supervised.state().reason
        return " ".join(text.split())


class PlannerExchange:
    """At most one exchange at a time; a later change replaces one in progress and takes its values along.

    Args:
        factory: starts the new planner.
        on_change: called in any thread after the new planner's state has changed.
    """

    def __init__(self, factory: PlannerFactory, on_change: Callable[[], None]):
        self._factory, self._on_change = factory, on_change
        self.pending: Pending | None = None
        self.text = NO_EXCHANGE  # for diagnostics and status

    def asked(self, settings: Settings, values: Mapping[str, Any]) -> bool:
        """Whether a change of parameters asks for another model than the one that runs or is loaded."""
        pending = {} if self.pending is None else self.pending.values
        present = {name: pending.get(name, getattr(settings, name)) for name in MODEL_PARAMETERS}
        return any(values.get(name, value) != value for name, value in present.items())

    def check(self, loaded: LoadedPlanner, settings: Settings, values: Mapping[str, Any]) -> None:
        """What is known before loading.

        Raises:
            InputError: the planner cannot be exchanged, or the VLA reads other inputs.
            ModelError: the VLA directory cannot be read.
        """
        if loaded.supervised is None:
            raise InputError(
                "the planner runs in the node's process (planner_process: false); configure the node again"
            )
        if not loaded.identity():
            raise InputError("the planner is not loaded yet; try again when it is")
        spec = load_spec(chosen_vla_dir(self._merged(settings, values).vla))
        if tuple(spec.cameras) != loaded.cameras:
            raise InputError(
                f"vla: it reads {', '.join(spec.cameras)}, the node has {', '.join(loaded.cameras)}; configure it again"
            )
        steps = max(spec.history.steps, default=0)
        if (steps, spec.history.interval_s) != (loaded.history_steps, loaded.history_interval_s):
            raise InputError("vla: it reads another history of the ego motion; configure the node again")

    def begin(self, settings: Settings, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Start loading, or end the exchange in progress where the values are those of before.

        Args:
            settings: in force.
            values: the change; without a model that is asked for, all of it is applied now.

        Returns:
            What is to be applied now.
        """
        if not self.asked(settings, values):
            now = {name: value for name, value in values.items() if name not in MODEL_PARAMETERS}
            self._no_longer_pending(now)
            return now
        merged = self._merged(settings, values)
        if self.pending is not None:
            values = {**self.pending.values, **values}
            self.cancel()
        if all(getattr(merged, name) == getattr(settings, name) for name in MODEL_PARAMETERS):
            return values
        before = {name: getattr(settings, name) for name in values}
        try:
            candidate = self._factory(merged)
        except FastDriveError as error:
            self.pending = Pending(values, before, None, error)
        else:
            assert candidate.supervised is not None  # as ``check`` has seen
            candidate.supervised.limits = replace(candidate.supervised.limits, restarts=0)
            candidate.supervised.on_change = self._on_change
            self.pending = Pending(values, before, candidate)
        self.text = EXCHANGING
        self._on_change()  # what happened before
        return {}

    def finish(self, failure: str = "") -> Pending:
        """The exchange is over: the caller owns the candidate, which is closed where it failed."""
        pending, self.pending = self.pending, None
        assert pending is not None
        self.text = f"failed: {failure}" if failure else NO_EXCHANGE
        if failure and pending.candidate is not None:
            pending.candidate.close()
        return pending

    def cancel(self) -> Mapping[str, Any]:
        """End the exchange in progress, if any. Returns the values that it had."""
        pending, self.pending, self.text = self.pending, None, NO_EXCHANGE
        if pending is None:
            return {}
        if pending.candidate is not None:
            pending.candidate.close()
        return pending.values

    def _no_longer_pending(self, names: Iterable[str]) -> None:
        """What was changed again after the exchange began neither takes effect with it nor goes back."""
        if self.pending is not None:
            kept = {name: value for name, value in self.pending.values.items() if name not in names}
            self.pending = replace(self.pending, values=kept)

    def _merged(self, settings: Settings, values: Mapping[str, Any]) -> Settings:
        pending = {} if self.pending is None else self.pending.values
        return settings.model_copy(update={**pending, **values})
