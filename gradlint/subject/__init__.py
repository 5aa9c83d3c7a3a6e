"""One model as rules see it: `Subject`, and the companions that answer what rules ask of it, one module each."""

from gradlint.subject.subject import Subject

__all__ = ["Subject"]
