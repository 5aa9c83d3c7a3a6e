"""Modules with state of their own: each changes in its forward what no `state_dict` holds.

A case is what the module gets when it is built, what its forward does, and what an observer sees of it. `LEFT` holds the cases
that nobody can put back, with a word of the sentence that says so.
"""

# ruff: noqa: PLW0108, PLW0603 - these modules do on purpose what one should not do

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import itertools
import queue
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

COUNT = 0
SEEN = [1]
TABLE = {"calls": 0}
MEAN = torch.zeros(3)


class Case(NamedTuple):
    build: Callable[[Any], Any]
    act: Callable[[Any, torch.Tensor], Any]
    observe: Callable[[Any], Any]


class Odd(nn.Module):
    """A small network whose forward also does what its case says."""

    calls = 0
    log: list[int] = []  # noqa: RUF012 - state of the class, on purpose

    def __init__(self, case):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.act = case.act
        case.build(self)

    def forward(self, x):
        self.act(self, x)
        return self.last(torch.tanh(self.first(x)))


class Holder:
    """A plain object."""

    def __init__(self, **items):
        vars(self).update(items)


class Slotted:
    __slots__ = ("items", "n")

    def __init__(self):
        self.n, self.items = 1, [1]


class Loud:
    """Its attributes cannot be set but through a method."""

    def __init__(self):
        vars(self)["n"] = 1

    def __setattr__(self, name, value):
        raise AttributeError(name)

    def add(self):
        vars(self)["n"] += 1


class Countdown:
    """An iterator in plain Python."""

    def __init__(self):
        self.left = 9

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        return self.left


class Names(dict):
    """A dict that does not like to be cleared."""

    def clear(self):
        raise TypeError("never")


@dataclasses.dataclass(frozen=True)
class Frozen:
    items: list


@dataclasses.dataclass
class Ema:
    value: float = 0.0
    history: list = dataclasses.field(default_factory=list)


def put(**items):
    """Return a function that gives attributes to a module. A function is called for the value."""

    def build(m):
        for name, value in items.items():
            setattr(m, name, value() if isinstance(value, (types.FunctionType, type)) else value)

    return build


def stream():
    yield from range(10**6)


def add_global():
    global COUNT
    COUNT += 1


def remember(x, seen=[]):  # noqa: B006 - the state is the default value
    seen.append(len(x))


def keyed(x, *, seen={}):  # noqa: B006
    seen[len(seen)] = x


def counter():
    n, items = 0, []

    def count():
        nonlocal n
        n += 1
        items.append(n)
        return n, items

    return count


def counting(count):
    """Return a hook that counts."""

    def hook(*_):
        count()

    hook.count = count
    return hook


def seen_by(count):
    return [
        cell.cell_contents if not isinstance(cell.cell_contents, list) else list(cell.cell_contents) for cell in count.__closure__
    ]


def decorated(x):
    decorated.calls += 1


decorated.calls = 0


@functools.lru_cache
def cached(n):
    return n + 1


def linked(m):
    m.node = None
    for _ in range(5000):
        m.node = [m.node, 0]


def deep_tail(m):
    node = m.node
    while node[0] is not None:
        node = node[0]
    return node


def bump(m, name, by=1):
    setattr(m, name, getattr(m, name) + by)


def peek(iterator):
    """The rest of an iterator, which is used up by that."""
    return list(itertools.islice(iterator, 3))


def resize(m, x):
    m.buf.resize_(7).fill_(2.0)


def register(m, name, value):
    m.register_buffer(name, value)


def holds(m, value):
    m.held = [value]


def at(*names):
    def observe(m):
        found = m
        for name in names:
            found = found[name] if isinstance(name, int) or not isinstance(found, (nn.Module, Holder)) else getattr(found, name)
        return found

    return observe


CASES: dict[str, Case] = {
    # numbers, text and containers
    "int": Case(put(n=0), lambda m, x: bump(m, "n"), lambda m: m.n),
    "float": Case(put(n=0.5), lambda m, x: bump(m, "n"), lambda m: m.n),
    "str": Case(put(n=""), lambda m, x: bump(m, "n", "x"), lambda m: m.n),
    "new attribute": Case(put(), lambda m, x: put(new=3)(m), lambda m: hasattr(m, "new")),
    "deleted attribute": Case(put(n=1), lambda m, x: vars(m).pop("n", None), lambda m: vars(m).get("n")),
    "list append": Case(put(s=list), lambda m, x: m.s.append(1), lambda m: list(m.s)),
    "list": Case(put(s=lambda: [1]), lambda m, x: m.s.append(1), lambda m: list(m.s)),
    "list item": Case(put(s=lambda: [1, 2]), lambda m, x: m.s.__setitem__(0, 9), lambda m: list(m.s)),
    "list cleared": Case(put(s=lambda: [1, 2]), lambda m, x: m.s.clear(), lambda m: list(m.s)),
    "list sorted": Case(put(s=lambda: [3, 2]), lambda m, x: m.s.sort(), lambda m: list(m.s)),
    "list rebound": Case(put(s=lambda: [3]), lambda m, x: put(s=lambda: [9])(m), lambda m: m.s),
    "list of lists": Case(put(s=lambda: [[1], [2]]), lambda m, x: m.s[1].append(3), lambda m: [list(i) for i in m.s]),
    "list in tuple": Case(put(s=lambda: ([1],)), lambda m, x: m.s[0].append(3), lambda m: list(m.s[0])),
    "dict": Case(put(s=lambda: {1: 2}), lambda m, x: m.s.update({1: 3, 4: 5}), lambda m: dict(m.s)),
    "dict removed": Case(put(s=lambda: {1: 2, 3: 4}), lambda m, x: m.s.pop(1, None), lambda m: list(m.s.items())),
    "dict of lists": Case(put(s=lambda: {"a": [1]}), lambda m, x: m.s["a"].append(2), lambda m: list(m.s["a"])),
    "dict order": Case(put(s=lambda: {1: 2, 3: 4}), lambda m, x: m.s.update({1: m.s.pop(1)}), lambda m: list(m.s)),
    "ordered dict": Case(
        put(s=lambda: collections.OrderedDict(a=1, b=2)), lambda m, x: m.s.move_to_end("a"), lambda m: list(m.s)
    ),
    "defaultdict": Case(put(s=lambda: collections.defaultdict(list)), lambda m, x: m.s["a"].append(1), lambda m: dict(m.s)),
    "counter": Case(put(s=lambda: collections.Counter("a")), lambda m, x: m.s.update("ab"), lambda m: dict(m.s)),
    "user dict": Case(put(s=lambda: collections.UserDict(a=1)), lambda m, x: m.s.update(a=2), lambda m: dict(m.s)),
    "chain map": Case(put(s=lambda: collections.ChainMap({}, {"a": 1})), lambda m, x: m.s.update(a=2), lambda m: dict(m.s)),
    "stubborn dict": Case(put(s=lambda: Names(a=1)), lambda m, x: m.s.update(a=2, b=3), lambda m: dict(m.s)),
    "set": Case(put(s=lambda: {1}), lambda m, x: m.s.add(2), lambda m: set(m.s)),
    "set emptied": Case(put(s=lambda: {1, 2}), lambda m, x: m.s.clear(), lambda m: set(m.s)),
    "deque": Case(
        put(s=lambda: collections.deque([1, 2], maxlen=2)), lambda m, x: m.s.append(3), lambda m: (list(m.s), m.s.maxlen)
    ),
    "deque rotated": Case(put(s=lambda: collections.deque([1, 2, 3])), lambda m, x: m.s.rotate(1), lambda m: list(m.s)),
    "bytearray": Case(put(s=lambda: bytearray(b"ab")), lambda m, x: m.s.extend(b"c"), lambda m: bytes(m.s)),
    "array": Case(put(s=lambda: array.array("d", [1.0])), lambda m, x: m.s.append(2.0), lambda m: list(m.s)),
    "queue": Case(put(s=queue.Queue), lambda m, x: m.s.put(2), lambda m: list(m.s.queue)),
    "linked": Case(linked, lambda m, x: deep_tail(m).__setitem__(1, 7), lambda m: deep_tail(m)[1]),
    "itself": Case(lambda m: put(s=[m, 1])(m), lambda m, x: m.s.append(2), lambda m: len(m.s)),
    "identity": Case(put(s=lambda: [1]), lambda m, x: m.s.append(2), lambda m: (id(m.s), list(m.s))),
    # objects
    "object": Case(put(s=lambda: Holder(n=1)), lambda m, x: vars(m.s).update(n=2), lambda m: m.s.n),
    "object in object": Case(put(s=lambda: Holder(o=Holder(v=[1]))), lambda m, x: m.s.o.v.append(2), lambda m: list(m.s.o.v)),
    "object new attribute": Case(put(s=Holder), lambda m, x: vars(m.s).update(n=2), lambda m: dict(vars(m.s))),
    "slots": Case(put(s=Slotted), lambda m, x: (bump(m.s, "n"), m.s.items.append(1)), lambda m: (m.s.n, list(m.s.items))),
    "no setattr": Case(put(s=Loud), lambda m, x: m.s.add(), lambda m: m.s.n),
    "dataclass": Case(put(s=Ema), lambda m, x: (bump(m.s, "value"), m.s.history.append(1)), lambda m: dataclasses.asdict(m.s)),
    "frozen dataclass": Case(put(s=lambda: Frozen([1])), lambda m, x: m.s.items.append(1), lambda m: list(m.s.items)),
    "namespace": Case(put(s=lambda: types.SimpleNamespace(n=1)), lambda m, x: bump(m.s, "n"), lambda m: m.s.n),
    "weak dict": Case(
        lambda m: put(k=Holder(), s=weakref.WeakKeyDictionary())(m), lambda m, x: m.s.__setitem__(m.k, 1), lambda m: len(m.s)
    ),
    "class attribute": Case(put(), lambda m, x: bump(type(m), "calls"), lambda m: type(m).calls),
    "class list": Case(put(), lambda m, x: type(m).log.append(1), lambda m: list(type(m).log)),
    "new class attribute": Case(put(), lambda m, x: setattr(Odd, "fresh", 1), lambda m: hasattr(Odd, "fresh")),
    "class of an object": Case(put(s=Holder), lambda m, x: setattr(Holder, "calls", 1), lambda m: hasattr(Holder, "calls")),
    # functions
    "closure": Case(put(f=lambda: counter()), lambda m, x: m.f(), lambda m: seen_by(m.f)),
    "partial": Case(lambda m: put(f=functools.partial(list.append, []))(m), lambda m, x: m.f(1), lambda m: list(m.f.args[0])),
    "bound method": Case(lambda m: put(f=Countdown().__next__)(m), lambda m, x: m.f(), lambda m: m.f.__self__.left),
    "default value": Case(put(), lambda m, x: remember(x), lambda m: list(remember.__defaults__[0])),
    "keyword default": Case(put(), lambda m, x: keyed(x), lambda m: len(keyed.__kwdefaults__["seen"])),
    "function attribute": Case(put(), lambda m, x: decorated(x), lambda m: decorated.calls),
    "global": Case(put(), lambda m, x: add_global(), lambda m: COUNT),
    "global list": Case(put(), lambda m, x: SEEN.append(1), lambda m: list(SEEN)),
    "global dict": Case(put(), lambda m, x: TABLE.update(calls=TABLE["calls"] + 1), lambda m: dict(TABLE)),
    "global tensor": Case(put(), lambda m, x: MEAN.add_(1.0), lambda m: MEAN.clone()),
    "cache": Case(lambda m: cached.cache_clear(), lambda m, x: cached(3), lambda m: cached.cache_info()),
    "forward hook": Case(put(), lambda m, x: m.first.register_forward_hook(print_nothing), lambda m: len(m.first._forward_hooks)),
    "hook with state": Case(
        lambda m: m.first.register_forward_hook(counting(counter())),
        lambda m, x: m.first(x),
        lambda m: seen_by(next(iter(m.first._forward_hooks.values())).count),
    ),
    "replaced forward": Case(put(), lambda m, x: put(extra=m.forward)(m.first), lambda m: "extra" in vars(m.first)),
    # iterators and generators
    "list iterator": Case(put(s=lambda: iter([1, 2, 3])), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "range iterator": Case(put(s=lambda: iter(range(99))), lambda m, x: next(m.s), lambda m: peek(m.s)),
    "count": Case(put(s=itertools.count), lambda m, x: next(m.s), lambda m: peek(m.s)),
    "cycle": Case(put(s=lambda: itertools.cycle("abc")), lambda m, x: next(m.s), lambda m: peek(m.s)),
    "chain": Case(put(s=lambda: itertools.chain([1, 2], [3])), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "zip": Case(put(s=lambda: zip([1, 2, 3, 4], "abcd", strict=True)), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "enumerate": Case(put(s=lambda: enumerate("abc")), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "map": Case(put(s=lambda: map(str, range(99))), lambda m, x: next(m.s), lambda m: peek(m.s)),
    "reversed": Case(put(s=lambda: reversed([1, 2, 3])), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "dict iterator": Case(put(s=lambda: iter({1: 2, 3: 4})), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "set iterator": Case(put(s=lambda: iter({1, 3})), lambda m, x: next(m.s, 0), lambda m: peek(m.s)),
    "iterator in a dict": Case(put(s=lambda: {"i": iter("abc")}), lambda m, x: next(m.s["i"], 0), lambda m: peek(m.s["i"])),
    "iterator in a list": Case(put(s=lambda: [iter("abc")]), lambda m, x: next(m.s[0], 0), lambda m: peek(m.s[0])),
    "python iterator": Case(put(s=Countdown), lambda m, x: next(m.s), lambda m: m.s.left),
    "iterator of an object": Case(put(s=lambda: Holder(i=iter("abc"))), lambda m, x: next(m.s.i, 0), lambda m: peek(m.s.i)),
    "iterator in a closure": Case(lambda m: put(f=iter([1, 2, 3]).__next__)(m), lambda m, x: m.f(), lambda m: m.f()),
    "generator": Case(put(s=lambda: stream()), lambda m, x: next(m.s), lambda m: peek(m.s)),
    "generator in a list": Case(put(s=lambda: [stream()]), lambda m, x: next(m.s[0]), lambda m: peek(m.s[0])),
    "map of a generator": Case(put(s=lambda: map(str, stream())), lambda m, x: next(m.s), lambda m: peek(m.s)),
    # tensors and arrays
    "tensor written": Case(put(t=lambda: torch.ones(3)), lambda m, x: m.t.add_(1.0), lambda m: m.t.clone()),
    "tensor rebound": Case(put(t=lambda: torch.ones(3)), lambda m, x: bump(m, "t"), lambda m: m.t.clone()),
    "tensor in a list": Case(put(t=lambda: [torch.ones(3)]), lambda m, x: m.t[0].add_(1.0), lambda m: m.t[0].clone()),
    "tensor in a dict": Case(put(t=lambda: {"a": torch.ones(3)}), lambda m, x: m.t["a"].mul_(2.0), lambda m: m.t["a"].clone()),
    "tensor of a graph": Case(
        put(t=lambda: torch.ones(3, requires_grad=True) * 2), lambda m, x: m.t.data.add_(1), lambda m: m.t.clone()
    ),
    "loose parameter": Case(
        lambda m: holds(m, nn.Parameter(torch.ones(3))), lambda m, x: m.held[0].data.add_(1), lambda m: m.held[0].clone()
    ),
    "expanded tensor": Case(put(t=lambda: torch.ones(1).expand(3)), lambda m, x: m.t[:1].add_(1.0), lambda m: m.t.clone()),
    "parameter hook": Case(
        put(), lambda m, x: m.first.bias.register_hook(print_nothing), lambda m: len(m.first.bias._backward_hooks or ())
    ),
    "hook after accumulation": Case(
        put(),
        lambda m, x: m.first.bias.register_post_accumulate_grad_hook(print_nothing),
        lambda m: len(m.first.bias._post_accumulate_grad_hooks or ()),
    ),
    "sparse tensor": Case(put(t=lambda: torch.eye(3).to_sparse()), lambda m, x: m.t.mul_(2.0), lambda m: m.t.to_dense().clone()),
    "integer tensor": Case(put(t=lambda: torch.zeros((), dtype=torch.int64)), lambda m, x: m.t.add_(1), lambda m: m.t.clone()),
    "buffer written": Case(lambda m: register(m, "buf", torch.zeros(3)), lambda m, x: m.buf.add_(1), lambda m: m.buf.clone()),
    "buffer resized": Case(lambda m: register(m, "buf", torch.zeros(3)), resize, lambda m: m.buf.clone()),
    "buffer shrunk": Case(lambda m: register(m, "buf", torch.ones(3)), lambda m, x: m.buf.resize_(1), lambda m: m.buf.clone()),
    "buffer emptied": Case(lambda m: register(m, "buf", torch.ones(3)), lambda m, x: m.buf.set_(), lambda m: m.buf.clone()),
    "buffer of another type": Case(
        lambda m: register(m, "buf", torch.ones(3)),
        lambda m, x: setattr(m.buf, "data", torch.ones(5, dtype=torch.float64)),
        lambda m: m.buf.clone(),
    ),
    "new buffer": Case(put(), lambda m, x: register(m, "late", torch.ones(3)), lambda m: "late" in dict(m.named_buffers())),
    "parameter replaced": Case(
        put(),
        lambda m, x: setattr(m.first, "bias", nn.Parameter(torch.ones(4))),
        lambda m: (id(m.first.bias), m.first.bias.clone()),
    ),
    "parameter scaled": Case(put(), lambda m, x: m.first.weight.data.mul_(0.5), lambda m: m.first.weight.clone()),
    "parameter frozen": Case(put(), lambda m, x: m.first.weight.requires_grad_(False), lambda m: m.first.weight.requires_grad),
    "tensor attribute": Case(put(t=lambda: torch.ones(3)), lambda m, x: setattr(m.t, "age", 3), lambda m: hasattr(m.t, "age")),
    "numpy": Case(put(t=lambda: np.zeros(3)), lambda m, x: np.add(m.t, 1, out=m.t), lambda m: m.t.copy()),
    "numpy of objects": Case(
        put(t=lambda: np.array([[1], [2, 3]], dtype=object)), lambda m, x: m.t[0].append(1), lambda m: list(m.t[0])
    ),
    "numpy in a list": Case(put(t=lambda: [np.zeros(3)]), lambda m, x: m.t[0].fill(2), lambda m: m.t[0].copy()),
    # modules that nobody registered
    "loose batch norm": Case(
        lambda m: holds(m, nn.BatchNorm1d(4)), lambda m, x: m.held[0](x), lambda m: dict(m.held[0].state_dict())
    ),
    "loose norm in a dict": Case(
        put(d=lambda: {"n": nn.BatchNorm1d(4)}), lambda m, x: m.d["n"](x), lambda m: m.d["n"].running_mean.clone()
    ),
    "loose norm in a closure": Case(
        lambda m: put(f=functools.partial(nn.BatchNorm1d(4)))(m), lambda m, x: m.f(x), lambda m: m.f.func.running_var.clone()
    ),
    "loose module in eval": Case(lambda m: holds(m, nn.Dropout()), lambda m, x: m.held[0].eval(), lambda m: m.held[0].training),
    "new child": Case(put(), lambda m, x: put(late=nn.Linear(1, 1))(m), lambda m: [name for name, _ in m.named_children()]),
    "child in eval": Case(put(), lambda m, x: m.first.eval(), lambda m: m.first.training),
    "spectral norm": Case(
        lambda m: put(n=nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))(m),
        lambda m, x: m.n(x),
        lambda m: {k: v.clone() for k, v in m.state_dict().items()},
    ),
}


def print_nothing(*_):
    """A hook that changes nothing."""


LEFT = {"generator": "generator", "generator in a list": "generator", "map of a generator": "generator"}
