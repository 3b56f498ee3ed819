"""``fastdrive sim``: what the simulator writes, one subcommand a file."""

COMMANDS = {
    "sim": (
        "datasets and bags from the simulator",
        {
            "dataset": ("a dataset in the nuScenes schema, with exact masks", "fastdrive_sim.commands.dataset"),
            "bag": ("a rosbag2 with the topics of a vehicle", "fastdrive_sim.commands.bag"),
        },
    )
}
