"""What can go wrong for a user. Every message says what, where and what next."""

from __future__ import annotations


class GradlintError(Exception):
    """Base of every error that gradlint raises on purpose; the command line turns it into exit 2.

    `hint`, when given, is the sentence that tells the user what to do next.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message}\n  {self.hint}" if self.hint else message


class TargetError(GradlintError):
    """The model cannot be found, read or imported."""


class UnsafeFileError(TargetError):
    """Reading the file would run code from it, or reach outside its folder."""


class InputError(GradlintError):
    """An input of the model is missing, unknown or of the wrong form."""


class ForwardError(GradlintError):
    """The model's own forward or backward pass raised; the cause is chained and `where` names the user's line."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.where = where


class ConfigError(GradlintError):
    """A command-line option, an argument or a configuration value does not fit."""


class RuleFileError(GradlintError):
    """A rule file cannot be loaded or breaks the contract of a rule."""
