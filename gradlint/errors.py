"""Exceptions that gradlint raises on purpose. Each message says what is wrong, where, and what to do next."""

from __future__ import annotations


class GradlintError(Exception):
    """Base class of every error that gradlint raises on purpose. The command line turns it into exit code 2.

    `hint` is an optional sentence that tells the user what to do next. `str(error)` prints it on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message}\n  {self.hint}" if self.hint else message


class TargetError(GradlintError):
    """Raised when the model cannot be found, read or imported."""


class GivenUpError(TargetError):
    """Raised when the probe of a model file that was read reached a limit, or died."""


class UnsafeFileError(TargetError):
    """Raised when reading the file would run code from it or open a file outside its folder."""


class InputError(GradlintError):
    """Raised when an input of the model is missing, unknown, or of the wrong shape or type."""


class ForwardError(GradlintError):
    """Raised when the model's own forward or backward pass raises.

    The original exception is chained as the cause, and `where` names the line of the user's code that raised it.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.where = where


class ConfigError(GradlintError):
    """Raised for an invalid command-line option, argument or configuration value."""


class RuleFileError(GradlintError):
    """Raised when a rule file cannot be loaded or does not define a valid rule."""
