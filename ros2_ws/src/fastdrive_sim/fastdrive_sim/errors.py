"""Errors of the simulator that are meant for its user: one line that names what is wrong and how to mend it."""


class SimError(Exception):
    """Something outside the simulator's code is wrong: the machine, a folder, a world."""


class SimUsageError(SimError):
    """An argument is out of range."""
