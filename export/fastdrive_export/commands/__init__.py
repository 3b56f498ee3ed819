"""``fastdrive export``: engines, from building to the question whether one is right; one subcommand a file."""

COMMANDS = {
    "export": (
        "engines: images to scored tokens, and the language model",
        {
            "build": ("write an engine", "fastdrive_export.commands.build"),
            "inspect": ("print the manifest and the layers", "fastdrive_export.commands.inspect"),
            "verify": ("compare an engine with torch", "fastdrive_export.commands.verify"),
        },
    )
}
