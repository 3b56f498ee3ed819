"""What faults do: functions that give, or are, a ``Fault.inject``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.faults.harness import Scene, Traffic

BACK = "CAM_BACK"


def traffic(**changes: Any) -> Callable[[Scene], None]:
    """Injects other traffic."""
    return lambda scene: setattr(scene, "traffic", Traffic(**changes))


def image(**fields: Any) -> Callable[[Scene], None]:
    """Injects images of CAM_BACK with other fields."""
    return traffic(bad={BACK: fields})


def odometry(path: str, value: Any) -> Callable[[Scene], None]:
    """Injects odometry with another value, like ``odometry("pose.pose.position.x", nan)``."""

    def edit(message: Any) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, name, value)

    return traffic(edit=edit)


def once(send: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """Injects other traffic for one set only."""

    def inject(scene: Scene) -> None:
        with scene.lock:
            send(scene)
            scene.traffic.sets = 1

    return inject


def planner(**values: Any) -> Callable[[Scene], None]:
    """Injects attributes of the stand-in planner."""

    def inject(scene: Scene) -> None:
        for name, value in values.items():
            setattr(scene.planner, name, value)

    return inject


def raises(error: BaseException) -> Callable[[Scene], None]:
    """Injects a planner that raises."""

    def plan(*_: Any) -> None:
        raise error

    return planner(plan=plan)


def plans(**changes: Any) -> Callable[[Scene], None]:
    """Injects a planner whose plans have other fields."""

    def inject(scene: Scene) -> None:
        good = scene.planner.plan
        scene.planner.plan = lambda *given: replace(good(*given), **changes)

    return inject


def hang(scene: Scene) -> None:
    scene.planner.hold.clear()


def parameter(name: str, value: Any, accepted: bool = False) -> Callable[[Scene], None]:
    """Injects a change of a parameter, and checks whether it is accepted."""

    def inject(scene: Scene) -> None:
        result = scene.set_parameter(name, value)
        if result.successful != accepted:
            scene.problems.append(f"{name}: {value!r}: accepted: {result.successful}; {result.reason}")

    return inject


def transition(number: int, accepted: bool) -> Callable[[Scene], None]:
    """Injects a lifecycle request, and checks whether it is accepted."""

    def inject(scene: Scene) -> None:
        if scene.transition(number) != accepted:
            scene.problems.append(f"transition {number}: accepted: {not accepted}")

    return inject


def publish(topic: str, **fields: Any) -> Callable[[Scene], None]:
    """Injects a message on an input that the vehicle sends to."""

    def inject(scene: Scene) -> None:
        publisher = scene.rig._publishers[f"/fastdrive/input/{topic}"]
        publisher.publish(publisher.msg_type(**fields))

    return inject


def deactivate(scene: Scene) -> None:
    scene.call(scene.rig.node.trigger_deactivate)


def clean_up(scene: Scene) -> None:
    deactivate(scene)
    scene.call(scene.rig.node.trigger_cleanup)


def activate(scene: Scene) -> None:
    scene.call(scene.rig.node.trigger_activate)


def restart(scene: Scene) -> None:
    clean_up(scene)
    start(scene)


def start(scene: Scene) -> None:
    scene.model_error = ""
    scene.call(scene.rig.node.start)


def break_model(scene: Scene) -> None:
    clean_up(scene)
    scene.model_error = "vla.json: missing"
    scene.call(scene.rig.node.start)


def exchange(pruner: str) -> Callable[[Scene], None]:
    """Another pruner while the node runs, which cannot be loaded."""

    def inject(scene: Scene) -> None:
        assert scene.set_parameter("pruner", pruner).successful
        scene.rig.wait(lambda: scene.rig.node._exchange.text.startswith("failed"), "the end of the exchange")

    return inject


def break_update(scene: Scene) -> None:
    """A change that is accepted and cannot be applied."""
    worker = scene.rig.node._worker
    worker.configure = lambda *_: 1 / 0
    scene.set_parameter("max_set_age_s", 0.9)


def mend_update(scene: Scene) -> None:
    del scene.rig.node._worker.configure
    scene.set_parameter("max_set_age_s", 1.0)


def second_publisher(topic: str) -> Callable[[Scene], None]:
    """Injects another publisher of an input, which sends nothing; ``end_second_publisher`` ends it."""

    def inject(scene: Scene) -> None:
        first = scene.rig._publishers[f"/fastdrive/input/{topic}"]
        scene.second = scene.rig.peer.create_publisher(first.msg_type, first.topic_name, first.qos_profile)

    return inject


def second_node(scene: Scene) -> None:
    """Another node of this name, as far as its status tells; ``end_second_publisher`` ends it."""
    from diagnostic_msgs.msg import DiagnosticStatus
    from rclpy.qos import DurabilityPolicy, QoSProfile

    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    scene.second = scene.rig.peer.create_publisher(DiagnosticStatus, "/fastdrive/output/status", latched)


def end_second_publisher(scene: Scene) -> None:
    scene.call(lambda: scene.rig.peer.destroy_publisher(scene.second))


def camera_info(height: int = 24, width: int = 32, frame_id: str = BACK, again: bool = True) -> Callable[[Scene], None]:
    """Injects CameraInfo of CAM_BACK with each set, or once."""

    def inject(scene: Scene) -> None:
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo

        topic = f"/fastdrive/input/{BACK.lower()}/camera_info"
        publisher = scene.rig._publishers.get(topic) or scene.rig.advertise(CameraInfo, topic, qos_profile_sensor_data)
        scene.rig.wait(publisher.get_subscription_count, "the node's subscription of CameraInfo")
        message = CameraInfo(height=height, width=width)
        message.header.frame_id = frame_id
        if again:
            scene.traffic = Traffic(extra=lambda *_: publisher.publish(message))
        else:
            scene.calm()
            with scene.lock:
                publisher.publish(message)

    return inject


right_camera_info = camera_info(again=False)


def new_frames(**names: str) -> Callable[[Scene], None]:
    """Injects odometry with other names of its frames."""

    def edit(message: Any) -> None:
        message.header.frame_id = names.get("frame_id", "")
        message.child_frame_id = names.get("child_frame_id", "")

    return traffic(edit=edit)


def alternate(scene: Scene) -> None:
    """Odometry of two publishers with frames of their own."""
    frames = iter(("odom", "map") * 1000)
    scene.traffic = Traffic(edit=lambda message: setattr(message.header, "frame_id", next(frames)))


def jump_back(scene: Scene) -> None:
    """A bag that starts again: one set of half a minute ago, then the present ones."""
    scene._send(scene.rig.now_ns() - 30 * 10**9, 1)


def freeze(seconds: float) -> Callable[[Scene], None]:
    """Stops the node's process for a time, as a debugger or a machine that swaps does."""

    def inject(scene: Scene) -> None:
        process = scene.rig.process
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    return inject


def planner_signal(number: int) -> Callable[[Scene], None]:
    """Sends a signal to the planner's process."""

    def inject(scene: Scene) -> None:
        os.kill(scene.rig.node._loaded.planner_state().pid, number)

    return inject


def flood(scene: Scene) -> None:
    """Ten more images of a camera with each set, all of one stamp."""

    def extra(scene: Scene, now_ns: int) -> None:
        for _ in range(10):
            scene.rig.send_image(BACK, now_ns, frame_id=BACK)

    scene.traffic = Traffic(extra=extra)
