"""A lifecycle node whose ROS parameters are ``Settings``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.parameter import Parameter as RosParameter

from fastdrive_node.errors import InputError
from fastdrive_node.ros.distribution import add_parameter_callbacks
from fastdrive_node.ros.guarded_node import GuardedNode, one_line
from fastdrive_node.ros.parameters import PARAMETERS, Settings, check_names, descriptor, make_settings, validate


class ParameterNode(GuardedNode):
    """Takes changes as a whole or not at all. Deriving classes say what a change means.

    Raises:
        ParameterException: a name or value at the start is wrong.
    """

    def __init__(self, name: str, **node_arguments):
        super().__init__(name, **node_arguments)
        self.update_problem = ""  # of the last change, which was accepted and could not be applied
        self._going_back = False
        self.settings = self._declare_parameters()
        add_parameter_callbacks(self, self.replace_values, self._check_update, self._on_update)

    def replace_values(self, parameters: list[RosParameter]) -> list[RosParameter]:
        """What is set in place of what was asked for."""
        return parameters

    def check_change(self, values: Mapping[str, Any]) -> None:
        """Raises FastDriveError, with the reason, for values that are valid and still cannot be applied."""

    def apply_change(self, values: Mapping[str, Any]) -> None:
        """Apply values that were accepted."""

    def change_ended(self) -> None:
        """After a change, whether it was applied or is an ``update_problem``."""

    def set_back(self, values: Mapping[str, Any]) -> None:
        """Show values again that are in force, and apply nothing."""
        self._going_back = True
        try:
            self.set_parameters_atomically([RosParameter(name, value=value) for name, value in values.items()])
        finally:
            self._going_back = False

    def _declare_parameters(self) -> Settings:
        values = {
            name: self.declare_parameter(name, schema["default"], descriptor(name)).value
            for name, schema in PARAMETERS.items()
        }
        try:
            check_names(self._parameter_overrides)  # of rclpy.node.Node, which ignores those that nobody declares
            settings = make_settings(values)
        except InputError as error:
            raise ParameterException(str(error), []) from error
        return settings

    def _check_update(self, parameters: Sequence[RosParameter]) -> SetParametersResult:
        """An exception in a parameter callback would end the process, so that none may leave this one."""
        if self._going_back:
            return SetParametersResult(successful=True)
        try:
            for parameter in parameters:
                value: Any = parameter.value
                reason = validate(parameter.name, value) if parameter.name in PARAMETERS else None
                if reason is not None:
                    return SetParametersResult(successful=False, reason=reason)
            self.check_change({parameter.name: parameter.value for parameter in parameters})
        except Exception as error:
            return SetParametersResult(successful=False, reason=one_line(error))
        return SetParametersResult(successful=True)

    def _on_update(self, parameters: Sequence[RosParameter]) -> None:
        """After a change was accepted. A fault is logged and stays in the diagnostics until the next change."""
        if self._going_back:
            return
        self.update_problem = ""
        try:
            given = {parameter.name: parameter.value for parameter in parameters if parameter.name in PARAMETERS}
            # 1 is 1.0
            self.apply_change({name: getattr(make_settings({name: value}), name) for name, value in given.items()})
        except Exception as error:
            names = ", ".join(parameter.name for parameter in parameters)
            self.update_problem = f"{names}: accepted but not applied: {one_line(error)}"
            self.get_logger().error(self.update_problem)
        self.change_ended()
