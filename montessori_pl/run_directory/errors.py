"""How a run directory says that something is wrong with it."""


class RunDirectoryError(ValueError):
    """What is wrong with a run directory, in a sentence for the user."""
