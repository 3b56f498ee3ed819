"""Subcommands of ``fastdrive`` for data, training and evaluation, one file each."""

COMMANDS = {
    "annotate": ("foreground masks by Grounding DINO and SAM", "fastdrive_training.commands.annotate"),
    "train": ("VLA or pruner training from a recipe", "fastdrive_training.commands.train"),
    "train-report": ("one HTML page of a training run", "fastdrive_training.commands.train_report"),
    "calibrate": ("a pruner's scores to probabilities, for each camera", "fastdrive_training.commands.calibrate"),
    "score": ("token scores against mask coverage", "fastdrive_training.commands.score"),
    "evaluate": ("open-loop planning", "fastdrive_training.commands.evaluate"),
    "evaluate-report": ("one page of a finished open-loop evaluation", "fastdrive_training.commands.evaluate_report"),
    "evaluate-answers": (
        "open-loop figures of answers that another program wrote",
        "fastdrive_training.commands.evaluate_answers",
    ),
    "view-weights": ("how Prune2Drive divides its tokens over the cameras", "fastdrive_training.commands.view_weights"),
    "camera-geometry": ("what each camera sees, for ring-view", "fastdrive_training.commands.camera_geometry"),
    "metrics": (
        "the figures of every planning convention for plans in a file",
        "fastdrive_training.commands.planning_metrics",
    ),
}
