"""The heartbeat by which Nav2's lifecycle manager notices that a node is gone, where bondpy is installed."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

TOPIC = "bond"  # as Nav2's lifecycle manager expects it, with the node's name as the bond's id
HEARTBEAT_PERIOD_S = 0.1
HEARTBEAT_TIMEOUT_S = 4.0


def start_bond(node: Node) -> Any:
    """A bond that has begun; None where bondpy is not installed or no bond can be made, which is logged.

    The manager is optional: a bond that breaks, or that nobody answers, is logged and ends nothing.
    """
    try:
        from bondpy.bondpy import Bond  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    name, log = node.get_name(), node.get_logger()
    try:
        bond = Bond(TOPIC, name, node, on_broken=lambda: log.warning("the bond with the lifecycle manager is broken"))
        bond.set_heartbeat_period(HEARTBEAT_PERIOD_S)
        bond.set_heartbeat_timeout(HEARTBEAT_TIMEOUT_S)
        bond.start()
    except Exception as error:  # of another version of bondpy
        log.warning(f"bond: {type(error).__name__}: {error}; the lifecycle manager must have bond_timeout 0")
        return None
    return bond


def end_bond(bond: Any) -> None:
    """Tell the manager that the node leaves the active state."""
    if bond is None:
        return
    try:
        bond.shutdown()
    except Exception:  # the context may be shut down already; then the manager notices by time
        return
