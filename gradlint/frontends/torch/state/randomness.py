"""Random states: seeded for the body of a context, restored after it, and of one thread alone where there are others.

torch, Python and numpy each have one random state for all threads. A thread that trains a model draws from them at any time, and
no lock of ours can keep it from that. So beside a thread that is at work, the thread of the check draws from states of its own:
its seeding and its drawing are led there, and other threads keep the common states. The numbers are those of the common states.
That doubles the time of a check of small operators, so threads that wait (of notebooks, progress bars, tests) do not count.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradlint.frontends.turns import own_thread

SEED = 0
_LEGACY: Any = np.random.mtrand._rand  # noqa: SLF001 - the state behind `np.random.seed` and the functions beside it
_RANDOM: Any = torch.random
_WAITING = frozenset(
    {"IPython", "asyncio", "concurrent", "execnet", "gradlint", "ipykernel", "multiprocessing", "queue", "rich", "selectors"}
    | {"socket", "ssl", "subprocess", "threading", "tornado", "tqdm", "zmq"}
)
"""Packages in which a thread waits for something, by the innermost frame of its stack."""
_COMMON: Any = random._inst  # noqa: SLF001 - the same of Python


def _drawn_integers(generator: torch.Generator, like: torch.Tensor, *bounds: int, **options: Any) -> torch.Tensor:
    return torch.empty_like(like, **options).random_(*(bounds if len(bounds) > 1 else (0, *bounds)), generator=generator)


def _dropped(generator: torch.Generator, x: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones_like(x, dtype=torch.bool)
    if not train or not p:
        return x.clone(), mask
    mask.bernoulli_(1 - p, generator=generator)
    return x.mul(mask).mul_(1 / (1 - p) if p < 1 else 0.0), mask


_WITHOUT_GENERATOR: Mapping[str, Callable[..., Any]] = {  # operators that take no generator, written with ones that do
    "rand_like": lambda generator, *args, **options: torch.empty_like(*args, **options).uniform_(generator=generator),
    "randn_like": lambda generator, *args, **options: torch.empty_like(*args, **options).normal_(generator=generator),
    "randint_like": _drawn_integers,
    "native_dropout": _dropped,
}


def has_company() -> bool:
    """Return whether another thread is at work right now: it is inside torch or numpy, or in code that is not known to wait."""
    mine = threading.get_ident()
    return any(ident != mine and _is_at_work(frame) for ident, frame in sys._current_frames().items())  # noqa: SLF001


def _is_at_work(frame: FrameType | None) -> bool:
    roots = []
    while frame is not None:
        name, spec = str(frame.f_globals.get("__name__", "")), frame.f_globals.get("__spec__")
        roots.append((spec.name if name == "__main__" and spec is not None else name).partition(".")[0])
        frame = frame.f_back
    return roots[0] not in _WAITING or not {"torch", "numpy"}.isdisjoint(roots)


@contextmanager
def seeded() -> Iterator[None]:
    """Seed the random states of torch, Python and numpy while the body of the context runs, and restore them on exit."""
    with ExitStack() as stack:
        if not has_company() or isinstance(_RANDOM.default_generator, _Routed):  # or a context inside another one
            stack.callback(_restored())
        else:
            stack.enter_context(_states_of_this_thread())
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002 - user code draws from the global state
        torch.manual_seed(SEED)
        yield


def _restored() -> Callable[[], None]:
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if on_gpu else None
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002

    def restore() -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return restore


@contextmanager
def _states_of_this_thread() -> Iterator[None]:
    mine = own_thread()
    real: torch.Generator = _RANDOM.default_generator
    generator = torch.Generator()
    with ExitStack() as stack:
        stack.enter_context(_led(random, _COMMON, random.Random(), mine))  # noqa: S311 - not for secrets
        stack.enter_context(_led(np.random, _LEGACY, np.random.RandomState(), mine))
        _RANDOM.default_generator = _Routed(real, generator, mine)
        stack.callback(setattr, _RANDOM, "default_generator", real)
        stack.enter_context(_Drawing(real, generator))
        yield


@contextmanager
def _led(module: Any, common: Any, own: Any, mine: Callable[[], bool]) -> Iterator[None]:
    """Let the functions of `module` that draw from `common` draw from `own` in this thread."""

    def led(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        ours = getattr(own, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return ours(*args, **kwargs) if mine() else usual(*args, **kwargs)

        return call

    usual = {name: f for name, f in vars(module).items() if getattr(f, "__self__", None) is common and hasattr(own, name)}
    if module is np.random:
        usual["seed"] = module.seed
    for name, function in usual.items():
        setattr(module, name, led(name, function))
    try:
        yield
    finally:
        for name, function in usual.items():
            setattr(module, name, function)


class _Routed:
    """Stands for the default generator where `torch.manual_seed` and the functions beside it look for it."""

    def __init__(self, real: torch.Generator, own: torch.Generator, mine: Callable[[], bool]) -> None:
        self._real, self._own, self._mine = real, own, mine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own if self._mine() else self._real, name)


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every operator that draws from the default generator draw from another one. A mode belongs to its thread."""

    def __init__(self, real: torch.Generator, own: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._real, self._own = real, own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, with the generator of the thread if it draws."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        place = _generator_place(func)
        if place is not None and place < len(args):
            if args[place] in {None, self._real}:
                args = (*args[:place], self._own, *args[place + 1 :])
            return func(*args, **kwargs)
        if place is not None:
            given = kwargs.get("generator")
            return func(*args, **{**kwargs, "generator": self._own if given in {None, self._real} else given})
        packet = func.overloadpacket
        if "generator" in packet.overloads() and func is packet.default:
            return packet.generator(*args, **kwargs, generator=self._own)
        if packet.__name__ in _WITHOUT_GENERATOR:
            return _WITHOUT_GENERATOR[packet.__name__](self._own, *args, **kwargs)
        return self._exchanged(func, args, kwargs)

    def _exchanged(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that draws from the default generator alone, with the state of the thread's own in it."""
        before = self._real.get_state()
        self._real.set_state(self._own.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            self._own.set_state(self._real.get_state())
            self._real.set_state(before)


def _generator_place(func: Any) -> int | None:
    """Return the index of the argument `generator` of an operator, or None if it has none."""
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001 - there is no public way to the schema
    return names.index("generator") if "generator" in names else None
