"""Errors a user can act on: one line that says what was wrong, where, and how to mend it."""


class PunaError(Exception):
    """The run failed for a reason the message names. Exit code 1."""

    exit_code = 1


class UsageError(PunaError):
    """The request itself was wrong: a missing file, an unknown key, a bad value. Exit code 2."""

    exit_code = 2


class PunaWarning(UserWarning):
    """What goes on, but otherwise than asked. Commands say it in a line."""


class ExtraMissing(UsageError):
    """An optional package is not installed; the message holds the line that installs it."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs a package that is not installed: pip install {package}")
