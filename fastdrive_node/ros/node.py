"""The lifecycle node ``fastdrive``: it connects parameters, topics, diagnostics and the worker that plans."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter
from rclpy.task import Future

from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.planning.early_images import EarlyDecoder
from fastdrive_node.ros.bond import end_bond, start_bond
from fastdrive_node.ros.diagnostics import ACTIVE, NodeStatus, diagnostic_array
from fastdrive_node.ros.distribution import ClockType
from fastdrive_node.ros.exchange import Pending, PlannerExchange
from fastdrive_node.ros.guarded_node import one_line
from fastdrive_node.ros.inputs import Inputs
from fastdrive_node.ros.outputs import Outputs
from fastdrive_node.ros.parameter_node import ParameterNode
from fastdrive_node.ros.planner_factory import LoadedPlanner, PlannerFactory, make_planner
from fastdrive_node.ros.qos import OUTPUT, QosLog
from fastdrive_node.ros.status import STATUS_TOPIC, StatusReporter
from fastdrive_node.ros.topics import check_camera_names
from fastdrive_node.sync.frames import FrameBuffer
from fastdrive_node.sync.modes import CONFIGURE, LOADING, PARAMETER, SAME_NAME
from fastdrive_node.sync.odometry import OdometryBuffer
from fastdrive_node.sync.outcomes import Outcome
from fastdrive_node.sync.statistics import PlanStatistics
from fastdrive_node.sync.worker import Worker
from fastdrive_node.types import JUMP_BACK_S, SUPERSEDED, Plan

NODE_NAME = "fastdrive"
STOP_S = 1.0  # for a plan in progress in this process, when the node ends


class FastDriveNode(ParameterNode):
    """Images of the VLA's cameras to a trajectory.

    unconfigured -> inactive: the planner is loaded or, in a process of its own, loads from now on; the outputs are
    advertised. inactive -> active: the inputs are subscribed and the worker runs. A model that proves unusable while it
    loads makes the node unconfigured again. Diagnostics are published in every state.

    Args:
        planner_factory: makes the planner when the node is configured.
    """

    def __init__(self, planner_factory: PlannerFactory = make_planner, **node_arguments):
        super().__init__(NODE_NAME, **node_arguments)
        self._planner_factory = planner_factory
        self._loaded: LoadedPlanner | None = None
        self._retired: LoadedPlanner | None = None  # closed after its last plan
        self._exchange = PlannerExchange(planner_factory, lambda: self._planner_changed.trigger())
        self._label = "unconfigured"
        self._configure_problem = ""
        self.failed: Future = Future()  # done with the reason when the model cannot be loaded
        self._stopping = False  # nothing may wait any more
        self._planner_changed = self.create_guard_condition(self._on_planner_change)
        self._qos_log = QosLog(self)
        self._outputs: Outputs | None = None
        self._inputs: Inputs | None = None
        self._worker: Worker | None = None
        self._bond: Any = None
        self._status = StatusReporter(self, self.settings)
        self._statistics = PlanStatistics(self.settings.statistics_window_s)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", OUTPUT)
        self._timer = self.create_timer(
            self.settings.diagnostics_period_s, self.publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-JUMP_BACK_S), on_clock_change=True)
        self._jumps = self.get_clock().create_jump_callback(threshold, post_callback=self._on_time_jump)

    def start(self) -> bool:
        """Configure and activate; False where one of them failed, which is logged."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:
        """rclpy's service callback, which raises for a transition that the present state does not have, and so would
        end the process. A lifecycle manager beside ``autostart`` asks for such ones."""
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)  # pyright: ignore[reportAttributeAccessIssue]
        except Exception as error:
            wanted = request.transition.label or request.transition.id
            self.get_logger().warning(f"change_state: transition {wanted} is refused: {error}")
            response.success = False
            return response

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("inactive", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(ACTIVE, self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("inactive", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("unconfigured", self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("finalized", self._clean_up)

    def destroy_node(self) -> None:
        self._stopping = True
        self._clean_up()
        self._status.destroy()
        self._jumps.unregister()
        self._state_machine.destroy_when_not_in_use()  # rclpy forgets it, and it keeps the node and the middleware
        super().destroy_node()

    def publish_diagnostics(self) -> None:
        inputs, outputs, loaded, worker = self._inputs, self._outputs, self._loaded, self._worker
        if inputs is not None:
            inputs.check_publishers()
        self._qos_log.check_mended()
        self._qos_log.check_name(STATUS_TOPIC)
        self._status.problem(SAME_NAME, self._qos_log.same_name)
        status = NodeStatus(
            name=self.get_fully_qualified_name().lstrip("/"),
            lifecycle=self._label,
            worker=worker.status() if worker else None,
            mode=self._status.mode,
            settings=self.settings,
            problem=self._configure_problem or self.update_problem,
            planner=loaded.planner_state() if loaded else None,
            publishers=inputs.publishers() if inputs else {},
            lost=inputs.lost() if inputs else {},
            unusable=dict(inputs.unusable) if inputs else {},
            early=inputs.early if inputs else None,
            failed=dict(self.failed_callbacks),
            loss_expected=inputs.loss_expected() if inputs else "",
            records_readers=outputs.readers() if outputs else 0,
            identity=loaded.identity() if loaded else {},
            problems=self._qos_log.texts(),
            exchange=self._exchange.text,
            statistics=self._statistics.snapshot(self.get_clock().now().nanoseconds),
        )
        self._diagnostics.publish(diagnostic_array(status, self.get_clock().now().to_msg()))

    def replace_values(self, parameters: list[RosParameter]) -> list[RosParameter]:
        """A drop of -1 is the loaded model's default, which the parameter then has."""
        loaded = self._loaded
        if loaded is None or not loaded.identity():  # no model, which ``check_change`` tells
            return parameters
        if self._exchange.asked(self.settings, {each.name: each.value for each in parameters}):
            return parameters  # the default is that of the next model
        default = RosParameter("drop", value=float(loaded.planner.default_drop))
        return [default if each.name == "drop" and each.value == -1.0 else each for each in parameters]

    def check_change(self, values: Mapping[str, Any]) -> None:
        """Raises FastDriveError for values that the planner does not take, or that no other planner could take over."""
        loaded = self._loaded
        if loaded is None:
            return
        if self._exchange.asked(self.settings, values):
            self._exchange.check(loaded, self.settings, values)
        elif "drop" in values:
            loaded.planner.check_drop(values["drop"])

    def apply_change(self, values: Mapping[str, Any]) -> None:
        if self._loaded is not None:
            values = self._exchange.begin(self.settings, values)
            self._status.exchange = self._exchange.text
        self._apply(values)

    def change_ended(self) -> None:
        self._status.problem(PARAMETER, self.update_problem)

    def _apply(self, values: Mapping[str, Any]) -> None:
        """Values that take effect now."""
        self.settings = self.settings.model_copy(update=values)
        self._status.configure(self.settings)
        self._statistics.window_s = self.settings.statistics_window_s
        if self._loaded is not None and self._loaded.supervised is not None:
            self._loaded.supervised.limits = self.settings.supervision_limits()
        if self._worker is not None:
            self._worker.configure(
                values.get("drop"),
                self.settings.frame_limits(),
                self.settings.odometry_limits(),
                self.settings.worker_limits(),
            )
        elif self._loaded is not None and "drop" in values:
            self._loaded.planner.drop = values["drop"]

    def _transition(self, label: str, work) -> TransitionCallbackReturn:
        """Run a transition; a failure is logged (rclpy would hide it) and leaves the node in its state."""
        try:
            work()
        except Exception as error:
            self.get_logger().error(one_line(error))
            if label == "inactive":
                self._configure_problem = f"configure failed: {one_line(error)}"
            if not isinstance(error, FastDriveError):
                logging.getLogger(__name__).exception("transition to %s failed", label)
            self._status.fault(CONFIGURE, one_line(error))
            return TransitionCallbackReturn.FAILURE
        self._label = label
        self._status.lifecycle(label)
        self.get_logger().info(label)
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self._status.lifecycle(LOADING, "the model is loaded")
        loaded = self._planner_factory(self.settings)
        try:
            check_camera_names(self.settings.vla or "the VLA", loaded.cameras)
            self._outputs = Outputs(self, loaded.cameras, self.settings, self._qos_log)
        except Exception:
            loaded.close()
            raise
        self._loaded, self._configure_problem = loaded, ""
        if loaded.supervised is None:
            if self.settings.drop < 0:
                self._take_drop(loaded)
        else:
            loaded.supervised.on_change = self._planner_changed.trigger
            self._planner_changed.trigger()  # what happened before

    def _on_planner_change(self) -> None:
        """In the executor's thread, after the planner's process was ready, or has ended."""
        try:
            self._close_retired()
            if (pending := self._exchange.pending) is not None:
                self._end_exchange(pending)
            self._follow_planner()
        except Exception as error:  # would end the process
            self.get_logger().error(f"after a change of the planner: {one_line(error)}; please report this")

    def _follow_planner(self) -> None:
        loaded = self._loaded
        if loaded is None or loaded.supervised is None:
            return
        state, error = loaded.supervised.state(), loaded.supervised.load_error
        if error is not None:
            self._undo_configuration(one_line(error))
        elif state.phase == "ready" and self.settings.drop != loaded.planner.drop:
            self._take_drop(loaded)  # it was -1, or the GPU's memory was short

    def _close_retired(self) -> None:
        """End the planner before an exchange, as soon as its last plan is made."""
        if self._retired is not None and (self._worker is None or not self._worker.planning):
            self._retired.close()
            self._retired = None

    def _end_exchange(self, pending: Pending) -> None:
        """Where the other planner is ready or cannot be loaded; the node goes on with one of the two."""
        state, reason = pending.state(), pending.reason
        if state == "failed":
            self.get_logger().error(f"exchange failed: {reason}; the model before goes on")
            self.set_back({name: pending.before[name] for name in pending.values})
            self._exchange.finish(reason)
        elif state == "ready":
            self._take_over(pending)
            self._exchange.finish()
        self._status.exchange = self._exchange.text

    def _take_over(self, pending: Pending) -> None:
        """The next set is planned by the other planner. Its parameters take effect with it."""
        loaded, before = pending.candidate, self._loaded
        assert loaded is not None and before is not None
        drop = self.settings.drop
        self._loaded = loaded
        if self._worker is not None:
            self._worker.planner = loaded.planner
        if self._inputs is not None and self._inputs.early is not None:
            self._inputs.early.least = loaded.image_sizes
        self._retired = before
        self._close_retired()
        self._apply({name: value for name, value in pending.values.items() if name != "drop"})
        if "drop" not in pending.values and drop != loaded.planner.drop:  # it was changed meanwhile
            with suppress(InputError):
                loaded.planner.drop = drop
        self._take_drop(loaded)  # it may have been -1
        names = ", ".join(f"{name}={getattr(self.settings, name)!r}" for name in pending.values)
        self.get_logger().info(f"another planner has taken over: {names}")

    def _take_drop(self, loaded: LoadedPlanner) -> None:
        self.set_parameters([RosParameter("drop", value=float(loaded.planner.drop))])

    def _undo_configuration(self, reason: str) -> None:
        """The model cannot be loaded."""
        self.get_logger().error(f"configure failed: {reason}")
        if self._label == ACTIVE:
            self.trigger_deactivate()
        self.trigger_cleanup()
        self._configure_problem = f"configure failed: {reason}"
        self._status.fault(CONFIGURE, reason)
        if not self.failed.done():
            self.failed.set_result(reason)

    def _activate(self) -> None:
        loaded, settings = self._loaded, self.settings
        assert loaded is not None  # only a configured node is activated
        self._statistics.reset()
        self._worker = Worker(
            loaded.planner,
            FrameBuffer(loaded.cameras, settings.frame_limits()),
            OdometryBuffer(
                loaded.history_steps,
                loaded.history_interval_s,
                settings.odometry_limits(),
                settings.vehicle_wheel_base_m,
            ),
            clock=lambda: self.get_clock().now().nanoseconds,
            report=self._on_outcome,
            limits=settings.worker_limits(),
        )
        early = settings.compressed and settings.jpeg_scaling and settings.decode_on_arrival and loaded.image_sizes
        decoder = EarlyDecoder(loaded.image_sizes) if early else None
        self._inputs = Inputs(self, self._worker, loaded.cameras, settings, self._qos_log, decoder)
        self._worker.start()
        self._status.attach(self._worker, self._outputs)
        self._bond = start_bond(self) if settings.bond else None

    def _deactivate(self) -> None:
        self._status.attach(None, self._outputs)
        end_bond(self._bond)
        self._bond = None
        if self._inputs is not None:
            self._inputs.destroy()
        for loaded in (self._loaded, self._retired):
            if self._stopping and loaded is not None:
                loaded.close()  # ends the plan in progress
        if self._worker is not None:
            self._worker.stop(STOP_S if self._stopping else None)
        self._inputs = self._worker = None

    def _clean_up(self) -> None:
        self._deactivate()
        self._status.attach(None, None)
        self.settings = self.settings.model_copy(update=self._exchange.cancel())  # of the next configuration
        for loaded in (self._loaded, self._retired):
            if loaded is not None:
                loaded.close()
        if self._outputs is not None:
            self._outputs.destroy()
        self._outputs = self._loaded = self._retired = None
        self._status.exchange = self._exchange.text

    def _on_outcome(self, outcome: Outcome) -> None:
        """In the worker's thread."""
        if not self.context.ok():
            return
        assert self._outputs is not None  # they end after the worker
        self._outputs.publish(outcome)
        self._status.outcome(outcome)
        if self._retired is not None:
            self._planner_changed.trigger()
        self._statistics.note(outcome, self.get_clock().now().nanoseconds)
        result = outcome.result
        if not isinstance(result, Plan) and result.stage != SUPERSEDED:
            self.get_logger().warning(f"refused ({result.stage}): {result.reason}", throttle_duration_sec=1.0)

    def _on_time_jump(self, jump: TimeJump) -> None:
        if self._worker is not None:
            self.get_logger().warning("time jumped back or changed its source: the state is reset")
            self._statistics.reset()
            self._worker.time_jumped(self.get_clock().now().nanoseconds)
