"""A lifecycle node that no exception in a callback ends: it is logged, counted and answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.lifecycle import LifecycleNode

from fastdrive_node.errors import FastDriveError

TELL_EVERY_S = 5.0


class GuardedNode(LifecycleNode):
    """rclpy ends the process by an exception in any callback, also in its own: its parameter services raise for a type
    of parameter that does not exist, its subscription of /clock for a negative time."""

    def __init__(self, name: str, **node_arguments):
        self.failed_callbacks: Counter[str] = Counter()  # by the last word of the topic or service; used by rclpy now
        super().__init__(name, **node_arguments)

    def create_subscription(self, msg_type: Any, topic: str, callback: Callable[..., None], *args: Any, **kwargs: Any):
        return super().create_subscription(msg_type, topic, self._guarded(topic, callback), *args, **kwargs)

    def create_service(self, srv_type: Any, srv_name: str, callback: Callable[..., Any], *args: Any, **kwargs: Any):
        return super().create_service(srv_type, srv_name, self._guarded(srv_name, callback, _refuse), *args, **kwargs)

    def create_timer(self, timer_period_sec: float, callback: Callable[[], None], *args: Any, **kwargs: Any):
        return super().create_timer(timer_period_sec, self._guarded("timer", callback), *args, **kwargs)

    def _guarded(
        self, name: str, callback: Callable[..., Any], answer: Callable[..., Any] = lambda *_: None
    ) -> Callable[..., Any]:
        """The callback; ``answer`` gets its exception and arguments, and gives what is returned."""
        name = name.rpartition("/")[2]

        @wraps(callback)  # rclpy looks at the signature
        def run(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                if not self.context.ok():  # the node ends
                    raise
                self.failed_callbacks[name] += 1
                self.get_logger().error(f"{name}: {one_line(error)}; ignored", throttle_duration_sec=TELL_EVERY_S)
                return answer(error, *arguments)

        return run


def _refuse(error: Exception, request: Any, response: Any) -> Any:
    """A service's answer after an exception."""
    refused = SetParametersResult(successful=False, reason=one_line(error))
    if isinstance(response, SetParameters.Response):
        done = list(response.results)
        response.results = done + [refused] * (len(request.parameters) - len(done))
    elif isinstance(response, SetParametersAtomically.Response):
        response.result = refused
    return response


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FastDriveError) else f"{type(error).__name__}: {text}"
