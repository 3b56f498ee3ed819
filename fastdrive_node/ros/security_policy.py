"""An SROS 2 policy for the node, from its graph: what it publishes, subscribes, serves and calls, and no more.

``python -m fastdrive_node.ros.security_policy --topics MAP.yaml --ros-args --params-file FILE > fastdrive.policy.xml``
(docs/security.md). It runs the node without its model in a ROS domain of its own, with the same parameters and
remappings as in the vehicle, for they decide which topics there are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from xml.etree import ElementTree

import rclpy
from rclpy.context import Context
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from fastdrive_node.errors import FastDriveError, PlannerError
from fastdrive_node.families.spec import chosen_vla_dir, load_spec
from fastdrive_node.ros.distribution import LOCAL_DISCOVERY
from fastdrive_node.ros.domain import own_domain
from fastdrive_node.ros.node import FastDriveNode
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import LoadedPlanner
from fastdrive_node.ros.topics import load_topic_map
from fastdrive_node.types import Command, EgoHistory, FrameSet, Plan

VERSION = "0.2.0"  # of sros2's schema of policies
ENCLAVE = "/fastdrive"


def policy(node: Node, enclave: str = ENCLAVE) -> str:
    """The XML of a policy with one enclave that allows what the node has at present."""
    name, namespace = node.get_name(), node.get_namespace()
    root = ElementTree.Element("policy", version=VERSION)
    enclaves = ElementTree.SubElement(root, "enclaves")
    profiles = ElementTree.SubElement(ElementTree.SubElement(enclaves, "enclave", path=enclave), "profiles")
    profile = ElementTree.SubElement(profiles, "profile", ns=namespace, node=name)
    rules = (
        ("topic", "publish", node.get_publisher_names_and_types_by_node),
        ("topic", "subscribe", node.get_subscriber_names_and_types_by_node),
        ("service", "reply", node.get_service_names_and_types_by_node),
        ("service", "request", node.get_client_names_and_types_by_node),
    )
    for kind, rule, look_up in rules:
        names = sorted({found for found, _ in look_up(name, namespace)})
        if names:
            allowed = ElementTree.SubElement(profile, f"{kind}s", {rule: "ALLOW"})
            for each in names:
                ElementTree.SubElement(allowed, kind).text = each
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


class _NoPlanner:
    drop = default_drop = 0.0

    def check_drop(self, value: float) -> None:
        pass

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        raise PlannerError("no model: the node only tells its topics")


def _without_model(settings: Settings) -> LoadedPlanner:
    spec = load_spec(chosen_vla_dir(settings.vla))
    return LoadedPlanner(_NoPlanner(), tuple(spec.cameras), 0, spec.history.interval_s, dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the policy to standard output. Returns 0, or 1 where the node cannot be activated."""
    parser = argparse.ArgumentParser(
        prog="python -m fastdrive_node.ros.security_policy",
        description="An SROS 2 policy of the node with the parameters and remappings behind --ros-args.",
        epilog="example: python -m fastdrive_node.ros.security_policy --topics map.yaml --ros-args -p vla:=tiny",
    )
    parser.add_argument("--enclave", default=ENCLAVE, help="path of the enclave (default: %(default)s)")
    parser.add_argument("--topics", help="the topic map that the launch file is given")
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = words.index("--ros-args") if "--ros-args" in words else len(words)
    options = parser.parse_args(words[:at])
    try:
        ros_words = words[at:] or ["--ros-args"]
        if options.topics:
            topics = load_topic_map(options.topics)
            ros_words += [word for pair in topics.remappings() for word in ("-r", ":=".join(pair))]
            ros_words += [word for pair in topics.parameters().items() for word in ("-p", _assignment(*pair))]
        print(_policy_of_new_node(ros_words, options.enclave), end="")
    except FastDriveError as error:
        print(f"security_policy: {error}", file=sys.stderr)
        return 1
    return 0


def _assignment(name: str, value: object) -> str:
    return f"{name}:={str(value).lower() if isinstance(value, bool) else value}"


def _policy_of_new_node(ros_words: list[str], enclave: str) -> str:
    context = Context()
    with own_domain() as domain:
        os.environ.update(LOCAL_DISCOVERY)
        rclpy.init(args=ros_words, context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        node = None
        try:
            node = FastDriveNode(_without_model, context=context)
            if not node.start():
                raise FastDriveError("the node cannot be activated, see above")
            return policy(node, enclave)
        except ParameterException as error:
            raise FastDriveError(str(error)) from error
        finally:
            if node is not None:
                node.destroy_node()
            context.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
