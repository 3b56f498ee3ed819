"""The ego vehicle: a kinematic bicycle whose steering and drive train are limited, slow and delayed."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.types import RECORD_S, SUBSTEPS, EgoStep

SUBSTEP_S = RECORD_S / SUBSTEPS
STOPPED_MPS = 0.02  # slower than this and braking, the vehicle stands


@dataclass(frozen=True)
class Actuators:
    """Limits of a passenger car. Times in seconds."""

    max_steer_rad: float = 0.55  # of the front wheels
    max_steer_rate: float = 0.7  # rad/s
    steer_lag_s: float = 0.10  # time constant of a first-order lag
    max_accel: float = 3.0
    max_brake: float = 7.0
    max_jerk: float = 25.0  # m/s^3; brakes build up in about 0.3 s
    accel_lag_s: float = 0.15
    delay_s: float = 0.05  # dead time between a command and the actuators


@dataclass(frozen=True)
class Control:
    """What the controller asks for."""

    accel: float = 0.0
    steer: float = 0.0  # rad


class VehicleModel:
    """State of the vehicle; ``step`` advances it by ``SUBSTEP_S``. The pose is that of the rear axle."""

    def __init__(self, start: EgoStep, vehicle: Vehicle | None = None, actuators: Actuators | None = None):
        self.state = start
        self.vehicle = vehicle or Vehicle()
        self.actuators = actuators or Actuators()
        waiting = round(self.actuators.delay_s / SUBSTEP_S)
        self._commands = deque([Control(start.accel, start.steer)] * waiting)

    def step(self, control: Control) -> EgoStep:
        """Advance by one sub-step under a command, which takes effect after the dead time."""
        self._commands.append(control)
        wanted = self._commands.popleft()
        limits, state = self.actuators, self.state
        accel = _lag(state.accel, wanted.accel, limits.accel_lag_s, limits.max_jerk)
        accel = min(max(accel, -limits.max_brake), limits.max_accel)
        steer = _lag(state.steer, wanted.steer, limits.steer_lag_s, limits.max_steer_rate)
        steer = min(max(steer, -limits.max_steer_rad), limits.max_steer_rad)
        speed = max(state.speed + accel * SUBSTEP_S, 0.0)
        if speed < STOPPED_MPS and wanted.accel <= 0:
            speed, accel = 0.0, 0.0
        travelled = 0.5 * (state.speed + speed) * SUBSTEP_S
        turn = math.tan(steer) / self.vehicle.wheel_base_m
        middle = state.yaw + 0.5 * turn * travelled
        self.state = EgoStep(
            state.x + travelled * math.cos(middle),
            state.y + travelled * math.sin(middle),
            state.yaw + turn * travelled,
            speed,
            accel,
            turn * speed,
            steer,
        )
        return self.state

    def place(self, **changed: float) -> None:
        """Change the state from outside; for tests."""
        self.state = replace(self.state, **changed)


def _lag(now: float, wanted: float, lag_s: float, rate: float) -> float:
    """One sub-step of a first-order lag whose rate of change is limited."""
    change = (wanted - now) * min(SUBSTEP_S / lag_s, 1.0)
    return now + min(max(change, -rate * SUBSTEP_S), rate * SUBSTEP_S)
