"""Search for inputs on which a module's forward runs: guesses, and repairs of the one that came furthest."""

from __future__ import annotations

import heapq
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, islice
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gradlint.errors import InputError, TargetError
from gradlint.frontends.inputs import DTYPES, InputSpec
from gradlint.frontends.torch.infer import stored
from gradlint.frontends.torch.infer.case import Case, Draft
from gradlint.frontends.torch.infer.layouts import Layout, entries, fallback, last_resorts, spec
from gradlint.frontends.torch.infer.parts import mask, planned
from gradlint.frontends.torch.infer.repairs import repaired
from gradlint.frontends.torch.infer.trial import OutOfTimeError, Trial
from gradlint.frontends.torch.inputs import Feed, feed, parameters
from gradlint.frontends.torch.lineage import dtype_name
from gradlint.frontends.user_code import described, raising_line

BUDGET = 20.0  # seconds for all trials
_MIXED = 3.0  # seconds to look for inputs whose samples stay apart, once others run
_ENTRIES = 6  # how many layers are tried as the one that reads the input
_DEPTH = 14  # how many repairs may follow each other
_REPAIRS = 80  # how many repairs of one trial are kept
_STEP = 0.05  # by how much each of them ranks behind the one before; progress is worth 1
_PATIENCE = 250  # how many trials in a row may come no further than the best before,
_IDLE = 4.0  # and seconds
_LARGEST = 1 << 23  # elements of the inputs of a trial
_ADDED = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__", "sub", "__sub__"})
_JOINED = frozenset({"cat", "stack", "mul", "__mul__", "__rmul__", "div", "__truediv__", "float"})
_TURNS = 3  # one trial in so many is a fresh guess, the others are repairs

Attempt = Callable[[Feed, Trial, float], None]


def infer(module: nn.Module, given: tuple[InputSpec, ...], attempt: Attempt, budget: float = BUDGET) -> Feed:
    """Return inputs on which the forward of a module runs. Given inputs are never changed.

    `attempt` is called with a feed, the trial that watches it, and the time at which the trial has to end; it raises what the
    forward raises. Guesses come from the module's own examples, its configuration, the parts that names and annotations of its
    arguments give them, and its layers; what fails is repaired by where and how it fails, the furthest first. Inputs whose
    samples a view would mix are taken only if no others run.

    Raises InputError if no inputs are found within `budget` seconds; the message quotes the error of the first guess.
    """
    return _Search(module, given, attempt, budget).run()


class _Search:
    def __init__(self, module: nn.Module, given: tuple[InputSpec, ...], attempt: Attempt, budget: float) -> None:
        self.module, self.attempt = module, attempt
        self.taken = parameters(module)
        self.known = _by_name(self.taken, given)
        self.end = perf_counter() + budget
        self.seen: set[str] = set()
        self.queue: list[tuple[float, int, int, float, Draft]] = []  # rank, order, repairs so far, base of the rank, draft
        self.order = count()
        self.complaint: BaseException | None = None
        self.mixed: Feed | None = None
        self.late = False
        self.named: set[str] = set()  # the arguments whose part is known by their name
        self.last = Trial()
        self.best, self.vain, self.gained = -1, 0, perf_counter()

    def run(self) -> Feed:
        """Try until one feed runs; see `infer`."""
        if not self.known:
            for example in stored.examples(self.module):
                if self._runs(example, {}, 0, 0.0):
                    return example
        guesses = self._guesses()
        for turn in count():
            if perf_counter() > min(self.end, self.gained + _IDLE) or self.vain > _PATIENCE:
                break
            depth, base = 0, 0.0
            draft = next(guesses, None) if turn % _TURNS == 0 or not self.queue else None
            if draft is None:
                if not self.queue:
                    break
                _, _, depth, base, draft = heapq.heappop(self.queue)
            whole = self._completed(draft)
            text = _texts(whole)
            if text in self.seen or _elements(whole) > _LARGEST:
                continue
            self.seen.add(text)
            made = self._assembled(whole)
            if self._runs(made, draft, depth, base):
                return self._by_use(made)
        if self.mixed is not None:
            return self.mixed
        raise self._refusal()

    def _runs(self, made: Feed, draft: Draft, depth: int, base: float) -> bool:
        """Try one feed. Where it fails, queue its repairs: ahead of the others if it came further than what it repairs."""
        trial = self.last = Trial()
        error: BaseException | None = None
        try:
            self.attempt(made, trial, self.end)
        except TargetError:
            raise
        except OutOfTimeError:
            self.late = True
            return False
        except Exception as raised:  # noqa: BLE001 - a wrong input can make the user's forward raise anything
            error = raised.__cause__ or raised
            self.complaint = self.complaint or error
        else:
            if trial.mixed is None:
                return True
            if self.mixed is None:
                self.mixed = made
                self.end = min(self.end, perf_counter() + _MIXED)
        self.vain += 1
        if trial.calls > self.best:
            self.best, self.vain, self.gained = trial.calls, 0, perf_counter()
        if depth < _DEPTH and draft:
            case = Case(self.module, self._completed(draft), trial, error)
            base += -1.0 if trial.calls > getattr(draft, "reached", -1) else 1.0
            for place, repair in enumerate(islice(repaired(case), _REPAIRS)):
                item = (base + _STEP * place, next(self.order), depth + 1, base, _Reached(repair, trial.calls))
                heapq.heappush(self.queue, item)
        return False

    def _by_use(self, made: Feed) -> Feed:
        """Return a feed that runs with floats where an input is computed with: zeros for a mask, and for guessed tokens."""
        first = {name: uses[0] for name, uses in self.last.uses.items()}

        def fitted(leaf: Any) -> Any:
            if not isinstance(leaf, InputSpec) or leaf.given:
                return leaf
            use, name = first.get(str(leaf.name), ""), str(leaf.name)
            if leaf.dtype == "bool" and use in _ADDED:
                return mask(name, leaf.shape, "float32")
            guessed = leaf.dtype == "int64" and leaf.value is None and name not in self.named
            return replace(leaf, dtype="float32", below=None) if guessed and use in _ADDED | _JOINED else leaf

        args, kwargs = pytree.tree_map(fitted, (made.args, dict(made.kwargs)))
        other = Feed(args, kwargs)
        return made if _texts(other) == _texts(made) or not self._runs(other, {}, 0, 0.0) else other

    def _completed(self, draft: Draft) -> dict[str, Any]:
        """Return a draft with the given inputs and in the dtype of the module's weights."""
        dtype = next((dtype_name(p.dtype) for p in self.module.parameters() if p.is_floating_point()), "float32")
        # padding rows are zero, so that a norm multiplies their gradient by eps^-1/2; training masks them, so none is drawn
        tables = [layer for layer in self.module.modules() if isinstance(layer, nn.Embedding) and layer.padding_idx is not None]
        padding: dict[int | None, int | None] = {table.num_embeddings: table.padding_idx for table in tables}

        def fitted(leaf: Any) -> Any:
            if not isinstance(leaf, InputSpec) or leaf.given:
                return leaf
            kind = dtype if leaf.dtype == "float32" and dtype in DTYPES else leaf.dtype
            return replace(leaf, dtype=kind, avoid=padding.get(leaf.below))

        whole: dict[str, Any] = pytree.tree_map(fitted, dict(draft))
        return {**whole, **self.known}

    def _assembled(self, whole: Mapping[str, Any]) -> Feed:
        names = {parameter.name for parameter in self.taken if parameter.kind is not parameter.VAR_POSITIONAL}
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.taken)
        if not self.taken or (whole and not names & set(whole) and not open_ended):
            return Feed(tuple(whole.values()))
        return feed(self.taken, whole)

    def _guesses(self) -> Iterator[Draft]:
        single = [p for p in self.taken if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
        yield from stored.from_config(self.module, self.taken)
        names = [p.name for p in single if p.default is p.empty and p.name not in self.known]
        scripted = isinstance(self.module, torch.jit.ScriptModule)
        if not names and not self.known:
            names = [p.name for p in single[:1]] or (["x"] if self.taken or scripted else [])
        if not names:
            yield {}
            return
        if not scripted and type(self.module).forward is nn.Transformer.forward:
            names = [name for name in ("src", "tgt") if name not in self.known]
        plans = {p.name: plan for p in single if p.name in names and (plan := planned(self.module, p)) is not p.empty}
        self.named = set(plans)
        rest = [name for name in names if name not in plans]
        layouts = list(islice(entries(self.module), _ENTRIES)) or [fallback(self.module)]
        for draft in _from_layers(rest, layouts):
            yield {name: draft.get(name, plans.get(name)) for name in names}
        if plans:
            masks = {name: plan for name, plan in plans.items() if "mask" in name}
            for draft in _from_layers(names, layouts):
                yield {**draft, **masks}
        if all(p.default is not p.empty for p in single):
            yield {}
        for layout in last_resorts(self.module):
            yield {name: plans.get(name, spec(name, layout)) for name in names}

    def _refusal(self) -> InputError:
        needed = [p.name for p in self.taken if p.default is p.empty and p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
        needed = needed or [p.name for p in self.taken[:1]] or ["x"]
        line = raising_line(self.complaint) if self.complaint else None
        why = f"; with the first guess the forward raised {described(self.complaint)}" if self.complaint else ""
        why += f" ({line})" if line else ""
        why += f"; {BUDGET:g} s were over" if self.late else ""
        options = " ".join(f"--input '{name}=DTYPE[SIZES]'" for name in needed if name not in self.known)
        return InputError(
            f"could not infer the inputs of {type(self.module).__name__}{why}",
            hint=f"give {options}, as in x=float32[8,3,64,64], or name a function that returns (module, args)",
        )


class _Reached(dict[str, Any]):
    """A draft, with how far the trial came that it repairs."""

    def __init__(self, draft: Draft, reached: int) -> None:
        super().__init__(draft)
        self.reached = reached


def _texts(tree: Any) -> str:
    tree = (tree.args, dict(tree.kwargs)) if isinstance(tree, Feed) else tree
    return repr(pytree.tree_map(lambda leaf: (leaf.name, leaf.text) if isinstance(leaf, InputSpec) else leaf, tree))


def _elements(whole: Mapping[str, Any]) -> int:
    return sum(
        math.prod(leaf.shape) for leaf in pytree.tree_leaves(dict(whole)) if isinstance(leaf, InputSpec) and not leaf.given
    )


def _by_name(taken: Sequence[inspect.Parameter], given: tuple[InputSpec, ...]) -> dict[str, InputSpec]:
    known = {spec.name: spec for spec in given if spec.name}
    positional = (spec for spec in given if spec.name is None)
    for parameter, each in zip((p for p in taken if p.name not in known), positional, strict=False):
        known[parameter.name] = replace(each, name=parameter.name)
    return known


def _from_layers(names: Sequence[str], layouts: Sequence[Sequence[Layout]]) -> Iterator[Draft]:
    """Yield inputs that the first layers can read.

    Either all arguments have the layout that one layer reads, or each argument has that of its own layer. The second kind comes
    first if those layers are embeddings.
    """
    if not names:
        yield {}
        return
    same = [{name: spec(name, layout) for name in names} for each in layouts for layout in each]
    own = [{name: spec(name, each[0]) for name, each in zip(names, layouts, strict=False)}]
    own = own if len(names) <= len(layouts) else []
    tables = all(each[0][0] == "int64" for each in layouts[: len(names)])
    yield from chain(own, same) if tables else chain(same, own)
