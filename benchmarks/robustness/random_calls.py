"""Lifecycle transitions, parameters, messages and faults of the planner in random order, and whether the node lives.

``python -m benchmarks.robustness.random_calls --calls 1000`` calls what the node's services call: any transition in any
state, parameters with values of any type and range, single and together, frame sets and fuzzed messages between them,
models that cannot be loaded, planners that raise. It ends with 1 where a call raised, the node's state is not that
of its state machine, or valid frame sets are no longer planned.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically

from benchmarks.robustness.fuzz import mutated, samples_of
from benchmarks.robustness.live_node import DirectPlanner, inputs_of, live_node, now_ns, plans_a_set, send_set
from fastdrive_node import logs
from fastdrive_node.errors import AnswerError, ModelError
from fastdrive_node.ros.node import FastDriveNode
from fastdrive_node.ros.parameters import PARAMETERS

LIFECYCLE = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE)
OTHERS = (Transition.TRANSITION_CLEANUP, *range(0, 13), 20, 30, 60, 99, 255)
SHUTDOWN = (
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    Transition.TRANSITION_INACTIVE_SHUTDOWN,
    Transition.TRANSITION_ACTIVE_SHUTDOWN,
)
LABELS = ("configure", "activate", "deactivate", "cleanup", "no such transition", "")
LIVE = [name for name, schema in PARAMETERS.items() if "readOnly" not in schema]


@dataclass
class Called:
    """What the calls gave."""

    calls: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    nodes: int = 0  # a node that was shut down is followed by another
    plans: int = 0


class Caller:
    """Makes random calls to one node, and compares its state with that of its state machine after each."""

    def __init__(self, node: FastDriveNode, planner: DirectPlanner, rng: random.Random, result: Called):
        self._node: Any = node
        self._planner = planner
        self._rng = rng
        self._result = result
        self.finalized = False

    def call(self, name: str = "") -> None:
        """One call, of a random kind unless it is named."""
        kinds: dict[str, tuple[Callable[[], bool], int]] = {
            "transition": (self._transition, 30),
            "set_parameters": (self._set_parameters, 20),
            "set_parameters_atomically": (self._set_together, 15),
            "frame_set": (self._send_set, 15),
            "fuzzed_message": (self._send_fuzzed, 15),
            "planner_fault": (self._fault, 5),
            "time_jump": (self._jump, 2),
            "diagnostics": (self._diagnose, 5),
        }
        name = name or self._rng.choices(list(kinds), [weight for _, weight in kinds.values()])[0]
        make = kinds[name][0]
        self._result.calls += 1
        self._result.by_kind[name] += 1
        try:
            self._result.accepted[name] += make()
        except Exception as error:  # would have ended the process
            self._problem(f"{name}: {type(error).__name__}: {error}")
        self._check_state()

    def recover(self) -> None:
        """To active, by the calls that a lifecycle manager makes, and then a plan."""
        self._planner.behave = lambda: None
        self._together({"drop": 0.5, **{name: PARAMETERS[name]["default"] for name in LIVE if name != "drop"}})
        for number in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            for _ in range(3):  # of models that cannot be loaded
                self._change(Transition(id=number))
        self._check_state()
        if self._node._label != "active":
            self._problem(f"cannot be activated again: {self._node._label}")
        elif not plans_a_set(self._node, self._planner):
            self._problem("valid frame sets are no longer planned")

    def _problem(self, text: str) -> None:
        self._result.problems.append(f"call {self._result.calls}: {text}"[:300])

    def _check_state(self) -> None:
        state = self._node._state_machine.current_state[1]
        if state != self._node._label:
            self._problem(f"the state machine is {state}, the node says {self._node._label}")
        self.finalized = state == "finalized"

    def _change(self, transition: Transition) -> bool:
        request, response = ChangeState.Request(transition=transition), ChangeState.Response()
        return self._node._LifecycleNodeMixin__on_change_state(request, response).success

    def _transition(self) -> bool:
        rng = self._rng
        if rng.random() < 0.02:
            return self._change(Transition(id=rng.choice(SHUTDOWN)))
        if rng.random() < 0.2:
            return self._change(Transition(label=rng.choice(LABELS), id=rng.choice(LIFECYCLE)))
        numbers = LIFECYCLE if rng.random() < 0.7 else [each for each in OTHERS if each not in SHUTDOWN]
        return self._change(Transition(id=rng.choice(numbers)))

    def _set_parameters(self) -> bool:
        parameters = [self._parameter() for _ in range(self._rng.randint(1, 4))]
        request, response = SetParameters.Request(parameters=parameters), SetParameters.Response()
        results = self._node._parameter_service._set_parameters_callback(request, response).results
        return all(each.successful for each in results)

    def _set_together(self) -> bool:
        return self._send_together([self._parameter() for _ in range(self._rng.randint(1, 4))])

    def _together(self, values: dict[str, Any]) -> bool:
        return self._send_together([ParameterMessage(name=name, value=_value(value)) for name, value in values.items()])

    def _send_together(self, parameters: list[ParameterMessage]) -> bool:
        request, response = SetParametersAtomically.Request(parameters=parameters), SetParametersAtomically.Response()
        return self._node._parameter_service._set_parameters_atomically_callback(request, response).result.successful

    def _parameter(self) -> ParameterMessage:
        rng = self._rng
        name = rng.choice(
            [rng.choice(LIVE), rng.choice(LIVE), rng.choice(list(PARAMETERS)), "no_such", "use_sim_time_"]
        )
        schema = PARAMETERS.get(name, {})
        if "minimum" in schema and rng.random() < 0.6:
            value: Any = rng.uniform(schema["minimum"], schema["maximum"])
            value = round(value) if schema["type"] == "integer" else value
        else:
            value = rng.choice(
                [
                    0,
                    1,
                    -1,
                    2**62,
                    0.0,
                    -1.0,
                    0.5,
                    1e308,
                    float("nan"),
                    float("inf"),
                    True,
                    "",
                    "x" * 1000,
                    b"\x01",
                    None,
                ]
            )
        return ParameterMessage(name=name, value=_value(value))

    def _send_set(self) -> bool:
        if self._node._inputs is None:
            return False
        send_set(self._node, now_ns())
        time.sleep(0.005)
        return True

    def _send_fuzzed(self) -> bool:
        if self._node._inputs is None:
            return False
        callbacks = inputs_of(self._node).callbacks
        for _ in range(10):
            name = self._rng.choice(list(callbacks))
            kind = {"odometry": "Odometry", "command": "String"}.get(name, "Image")
            callbacks[name](mutated(self._rng, samples_of(kind, now_ns())))
        return True

    def _fault(self) -> bool:
        def refuse() -> None:
            raise AnswerError("answer: no <PLANNING> tag")

        def crash() -> None:
            raise ZeroDivisionError("a fault of the planner")

        def wait() -> None:
            time.sleep(0.05)

        self._planner.behave = self._rng.choice([refuse, crash, wait, lambda: None, lambda: None])
        return True

    def _jump(self) -> bool:
        self._node._on_time_jump(None)
        return True

    def _diagnose(self) -> bool:
        self._node.publish_diagnostics()
        self._node._status.update()
        return True


def _value(value: Any) -> ParameterValue:
    kinds = {
        bool: (ParameterType.PARAMETER_BOOL, "bool_value"),
        int: (ParameterType.PARAMETER_INTEGER, "integer_value"),
        float: (ParameterType.PARAMETER_DOUBLE, "double_value"),
        str: (ParameterType.PARAMETER_STRING, "string_value"),
    }
    if value is None:
        return ParameterValue(type=ParameterType.PARAMETER_NOT_SET)
    if isinstance(value, bytes):
        return ParameterValue(type=ParameterType.PARAMETER_BYTE_ARRAY, byte_array_value=[value])
    kind, name = kinds[type(value)]
    return ParameterValue(type=kind, **{name: value})


def random_calls(calls: int, seed: int = 0) -> Called:
    """So many calls, to one node after another where one is shut down."""
    rng, result = random.Random(seed), Called()

    def load() -> None:
        if rng.random() < 0.1:
            raise ModelError("weights: missing")

    while result.calls < calls:
        planner = DirectPlanner()
        result.nodes += 1
        with live_node(planner, load=load, start=False) as node:
            caller = Caller(node, planner, rng, result)
            while result.calls < calls and not caller.finalized:
                caller.call()
            if not caller.finalized:
                caller.recover()
            result.plans += planner.plans
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random lifecycle and parameter calls to a live node")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(arguments)
    logs.set_up()
    result = random_calls(options.calls, options.seed)
    for name, count in sorted(result.by_kind.items()):
        print(f"{name}: {count} calls, {result.accepted[name]} accepted")
    print(f"{result.calls} calls to {result.nodes} nodes, {result.plans} plans, {len(result.problems)} problems")
    for problem in result.problems:
        print(problem)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump({"seed": options.seed, **vars(result)}, stream, indent=2)
    return int(bool(result.problems))


if __name__ == "__main__":
    sys.exit(main())
