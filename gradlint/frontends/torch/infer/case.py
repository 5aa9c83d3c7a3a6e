"""A trial that failed, and the ways to change the inputs that a tensor comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.infer.layouts import LENGTH, STEPS, entries, last_resorts
from gradlint.frontends.torch.infer.trial import Trial

Draft = Mapping[str, Any]  # what is passed for each argument: trees in which tensors are `InputSpec`s


@dataclass(frozen=True)
class Case:
    """A trial that failed, with what was passed."""

    module: nn.Module
    draft: Draft
    trial: Trial
    error: BaseException | None

    @property
    def text(self) -> str:
        """The message of the error with its type; empty if the forward ran but mixed samples."""
        return f"{type(self.error).__name__}: {self.error}" if self.error is not None else ""

    @property
    def specs(self) -> dict[str, InputSpec]:
        """The specification of each tensor that was passed, by its name."""
        return {str(leaf.name): leaf for leaf in pytree.tree_leaves(dict(self.draft)) if isinstance(leaf, InputSpec)}

    def with_spec(self, name: str, **changed: Any) -> Draft:
        """Return the draft with one specification changed. Values that were made for another shape are dropped."""
        old = self.specs[name]
        if "value" not in changed and old.value is not None and changed.get("shape", old.shape) != old.shape:
            changed["value"] = None
        return self._mapped(name, replace(old, **changed))

    def with_argument(self, name: str, value: Any) -> Draft:
        """Return the draft with another value for an argument."""
        return {**self.draft, name: value}

    def _mapped(self, name: str, new: InputSpec) -> Draft:
        mapped: Draft = pytree.tree_map(
            lambda leaf: new if isinstance(leaf, InputSpec) and leaf.name == name else leaf, dict(self.draft)
        )
        return mapped

    def direct(self, tensor: Any) -> str | None:
        """Return the name of the input whose shape a tensor still has, if it comes from a single one."""
        names = self.trial.sources(tensor)
        return (
            names[0] if len(names) == 1 and names[0] in self.specs and self.specs[names[0]].shape == tuple(tensor.shape) else None
        )

    def movable(self, tensor: Any) -> list[str]:
        """Return the inputs that a tensor comes from and that the user did not give."""
        return [name for name in self.trial.sources(tensor) if name in self.specs and not self.specs[name].given]


def fit(case: Case, tensor: Tensor, axis: int, needed: int) -> Iterator[Draft]:
    """Change the inputs of a tensor so that it has `needed` entries along an axis, where it has others now."""
    actual, needed = int(tensor.shape[axis]), int(needed)
    names = case.movable(tensor)
    first = axis in {0, -tensor.ndim}
    for name in names:
        shape = case.specs[name].shape
        for place in reversed(range(len(shape))):
            if shape[place] == actual and (place > 0 or first or len(shape) == 1) and actual != needed:
                square = len(shape) > 3 and place > 1 and len(set(shape[2:])) == 1  # images stay square
                whole = (*shape[:2], *(needed,) * (len(shape) - 2)) if square else (*shape[:place], needed, *shape[place + 1 :])
                draft = case.with_spec(name, shape=whole)
                yield draft
                yield from _compensated(replace(case, draft=draft), name, place, needed - actual)
    widths = [case.specs[name].shape[-1] for name in names if case.specs[name].shape]
    if len(names) > 1 and sum(widths) == actual and needed >= len(names):
        share, rest = divmod(needed, len(names))
        draft = case.draft
        for place, name in enumerate(names):
            shape = case.specs[name].shape
            draft = replace(case, draft=draft).with_spec(name, shape=(*shape[:-1], share + (rest if place == 0 else 0)))
        yield draft
    for name in names:
        shape = case.specs[name].shape
        if len(names) > 1 and shape and shape[-1] + needed - actual > 0:
            yield case.with_spec(name, shape=(*shape[:-1], shape[-1] + needed - actual))
        if len(shape) > 3 and (shape[1] * needed) % max(actual, 1) == 0:
            yield case.with_spec(name, shape=(shape[0], shape[1] * needed // actual, *shape[2:]))
        if shape and (shape[-1] * needed) % max(actual, 1) == 0 and len(shape) <= 3 and actual:
            yield case.with_spec(name, shape=(*shape[:-1], shape[-1] * needed // actual))
        yield from resized(case, name, needed / max(actual, 1), flat=tensor.ndim <= 3)


def _compensated(case: Case, name: str, place: int, more: int) -> Iterator[Draft]:
    """What one input gained in its last axis another one loses, as where both were joined to fit a weight."""
    own = case.specs[name].shape
    for other, spec in case.specs.items():
        alike = len(spec.shape) == len(own) == place + 1 and spec.dtype == case.specs[name].dtype
        if other != name and alike and not spec.given and spec.shape[:-1] == own[:-1] and spec.shape[-1] > more:
            yield case.with_spec(other, shape=(*spec.shape[:-1], spec.shape[-1] - more))


def resized(case: Case, name: str, ratio: float, *, flat: bool = True) -> Iterator[Draft]:
    """Scale the axes behind the channels so that the number of values changes by a ratio; `flat`: they are joined in one axis."""
    shape = case.specs[name].shape
    axes = len(shape) - 2
    if axes < 1 or not 1e-4 < ratio < 1e4:
        return
    guess = shape[-1] * ratio ** (1 / axes if flat else 1)
    near = round(guess)
    for size in dict.fromkeys((near, near + 1, near - 1, near + 2, near - 2, near + 4, near - 4)):
        if 1 <= size <= 2048 and size != shape[-1]:
            yield case.with_spec(name, shape=(*shape[:2], *(size,) * axes))
    if axes == 1 and round(shape[1] * ratio) >= 1:
        yield case.with_spec(name, shape=(shape[0], round(shape[1] * ratio), shape[2]))


def with_rank(case: Case, tensor: Any, rank: int) -> Iterator[Draft]:
    """Change the inputs of a tensor so that it has another number of axes."""
    for name in case.movable(tensor):
        spec = case.specs[name]
        wanted = len(spec.shape) + rank - tensor.ndim
        if not 1 <= wanted <= 5 or wanted == len(spec.shape):
            continue
        for each in entries(case.module):
            for dtype, shape, below in each:
                if len(shape) == wanted and dtype == spec.dtype:
                    yield case.with_spec(name, shape=shape, below=below)
                    break
        if wanted < len(spec.shape):
            yield case.with_spec(name, shape=(*spec.shape[: wanted - 1], spec.shape[-1]))
            yield case.with_spec(name, shape=spec.shape[:wanted])
        else:
            more = (LENGTH,) * (wanted - len(spec.shape))
            if wanted > 3 and spec.dtype != "int64":
                for dtype, shape, _ in last_resorts(case.module):
                    if len(shape) == wanted:
                        yield case.with_spec(name, dtype=dtype, shape=shape, value=None)
                yield case.with_spec(name, shape=(*spec.shape[:1], *(STEPS,) * (wanted - 2), spec.shape[-1]))
                continue
            yield case.with_spec(name, shape=(*spec.shape[:1], *more, *spec.shape[1:]))
            yield case.with_spec(name, shape=(*spec.shape, *more))
