"""The model that rules check: `Subject`, and its companions, one module each."""

from gradlint.subject.subject import Subject

__all__ = ["Subject"]
