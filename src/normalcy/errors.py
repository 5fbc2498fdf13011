"""What normalcy raises when a user's input is at fault: one sentence each, saying who, expected, got, what to do."""


class NormalcyError(Exception):
    """Base of all of them; the command line prints the sentence and exits with ``exit_code``."""

    exit_code = 1


class DataError(NormalcyError, ValueError):
    """Images, masks, tables or folders that cannot be used."""


class SettingsError(NormalcyError, ValueError):
    """An unknown setting, an impossible value, a wrong word on the command line."""

    exit_code = 2


class ModelFileError(NormalcyError):
    """A model folder that is missing, damaged, of an unknown version or unsafe."""


class TrainingError(NormalcyError):
    """Training cannot go on, for example because a loss is not finite."""


class WriteError(NormalcyError, OSError):
    """A file or folder that cannot be written: no space, no rights, a disk that is read-only."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno
