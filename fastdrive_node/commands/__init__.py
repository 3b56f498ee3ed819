"""Subcommands of ``fastdrive`` that run in the vehicle, one file each."""

COMMANDS = {
    "replay": ("a rosbag2 through the real node", "fastdrive_node.commands.replay"),
    "plan": ("one set of images to one plan", "fastdrive_node.commands.plan"),
    "bench": ("every stage against plain transformers", "fastdrive_node.commands.bench"),
}
