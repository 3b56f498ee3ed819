"""Subcommands of ``fastdrive`` that run in the vehicle, one file each."""

COMMANDS = {
    "replay": ("a rosbag2 through the real node", "fastdrive_node.commands.replay"),
    "plan": ("one set of images to one plan", "fastdrive_node.commands.plan"),
    "vla": (
        "VLA directories: make one from a checkpoint, check it, read recorded answers",
        {
            "init": ("a VLA directory from a checkpoint of the Hub", "fastdrive_node.commands.vla_init"),
            "check": (
                "what a VLA is asked, its cost, and what does not fit",
                "fastdrive_node.commands.vla_check",
            ),
            "parse": ("recorded answers to waypoints or refusals", "fastdrive_node.commands.vla_parse"),
        },
    ),
    "bench": ("every stage against plain transformers", "fastdrive_node.commands.bench"),
}
