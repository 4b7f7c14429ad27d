"""The two exceptions of miniclip. Wrong arguments raise ValueError or TypeError, wrong paths FileNotFoundError."""


class CheckpointError(ValueError):
    """Weights, or the files around them, that do not fit: the message names the file, the keys and the shapes."""


class DataError(ValueError):
    """A data set that cannot be read as it is: the message names the file and, where there is one, the line."""
