"""Exceptions of miniclip. Wrong arguments raise ValueError or TypeError, wrong paths FileNotFoundError."""


class CheckpointError(ValueError):
    """Checkpoint files that are damaged or do not fit; the message names the file, the keys and the shapes."""


class DataError(ValueError):
    """Dataset that cannot be read; the message names the file and, if there is one, the line."""


class UnreadableError(DataError):
    """One image, row or shard that cannot be used.

    Attributes:
        name: a path, "captions.csv, line 7", "shard-0003.tar: 000123.jpg".
        reason: the problem and what to do, without the name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
