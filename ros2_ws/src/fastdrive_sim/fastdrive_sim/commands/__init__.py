"""``fastdrive sim``: what the simulator writes, one subcommand a file."""

COMMANDS = {
    "sim": (
        "datasets, bags and closed-loop drives from the simulator",
        {
            "dataset": ("a dataset in the nuScenes schema, with exact masks", "fastdrive_sim.commands.dataset"),
            "drive": ("the closed loop through the node", "fastdrive_sim.commands.drive"),
            "bag": ("a rosbag2 with the topics of a vehicle", "fastdrive_sim.commands.bag"),
        },
    )
}
