"""Keep the plain Python state that can be reached from a module: its attributes, and what is in them.

Everything is restored in place, so that whoever else holds a list or a dict sees it restored. Iterators cannot be put back, so
the body runs with copies of them. Generators cannot even be copied: where one was advanced, the report says so.
"""

from __future__ import annotations

import array
import ast
import contextvars
import functools
import io
import itertools
import queue
import random
import sys
import threading
import types
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlint.frontends.torch.state.code import globals_of, is_user_class, is_user_function
from gradlint.frontends.torch.state.iterators import GENERATORS, Watched, place
from gradlint.frontends.torch.state.restoring import Restoring
from gradlint.frontends.torch.state.tensors import kept_tensor
from gradlint.frontends.turns import silent

_MOST_OBJECTS = 500_000
_MOST_BYTES = 2 << 30
"""The most memory for copies of what is no parameter and no buffer."""

_PLAIN = frozenset(
    {bool, int, float, complex, str, bytes, type(None), range, types.BuiltinFunctionType, types.ModuleType, types.CodeType}
    | {torch.dtype, torch.device, torch.Size, torch.layout, types.MappingProxyType, type(Ellipsis), slice, type(NotImplemented)}
)
_FOREIGN = ("threading", "_thread", "logging", "multiprocessing", "concurrent", "asyncio", "socket", "subprocess", "importlib",
            "enum", "typing", "re", "pathlib", "inspect", "ast", "torch._C", "torch._ops", "torch.jit", "torch.fx",
            "torch._dynamo", "torch.distributed", "gradlint")  # fmt: skip


class Keeper:
    """Saves what it is shown, and all that can be reached from there.

    Args:
        restoring: Takes the steps that restore it.
        owned: Tensors whose values are saved whatever their size: parameters and buffers.
    """

    def __init__(self, restoring: Restoring, owned: set[int]) -> None:
        self._restoring = restoring
        self._owned = owned
        self._bytes = 0
        self._seen: dict[int, Any] = {}  # by id; it keeps the objects, so that no other one gets their id
        self._copies: dict[int, Any] = {}
        self._open: list[tuple[str, Any]] = []
        self._empty: list[dict[Any, Any]] = []  # most tables of a module are, and this is the quick way for them
        restoring.later("hooks and tables", self._clear)

    def keep(self, path: str, value: Any) -> None:
        """Save `value`, which messages call `path`, and all that can be reached from it."""
        self._open.append((path, value))
        while self._open:
            path, value = self._open.pop()
            if type(value) in _PLAIN or id(value) in self._seen:
                continue
            if len(self._seen) >= _MOST_OBJECTS:
                self._restoring.say(f"{path} holds more than {_MOST_OBJECTS} objects, and not all of them could be kept")
                self._open.clear()
                return
            self._seen[id(value)] = value
            self._visit(path, value)

    def _clear(self) -> None:
        for table in self._empty:
            if table:
                table.clear()

    def _visit(self, path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._keep_tensor(path, value)
        elif isinstance(value, np.ndarray):
            self._keep_array(path, value)
        elif isinstance(value, (dict, list, set, deque, bytearray, array.array)):
            self._keep_container(path, value)
        elif isinstance(value, memoryview):
            self._open.append((path, value.obj))
        elif isinstance(value, (tuple, frozenset)):
            self._open.extend((path, item) for item in value)
        elif isinstance(value, (*GENERATORS, types.FunctionType, types.MethodType, functools.partial, types.CellType, type)):
            self._keep_code(path, value)
        elif hasattr(value, "cache_clear") and hasattr(value, "cache_info"):
            self._keep_cache(path, value)
        elif (steps := _state_of(value)) is not None:
            read, write = steps
            before = read()
            self._restoring.later(path, lambda: None if _equal(read(), before) else write(before))
        self._keep_attributes(path, value)

    def _keep_tensor(self, path: str, tensor: Tensor) -> None:
        if self._has_room(tensor, 0 if id(tensor) in self._owned or tensor.is_meta else tensor.numel() * tensor.element_size()):
            self._restoring.later(path, kept_tensor(tensor))
        elif not tensor.is_inference():
            version = tensor._version  # noqa: SLF001
            self._unless(lambda: tensor._version == version, f"{path} was written, and is too large to be kept")  # noqa: SLF001
        if tensor._backward_hooks:  # noqa: SLF001 - they may hold state of their own
            self._open.append((path, tensor._backward_hooks))  # noqa: SLF001

    def _keep_array(self, path: str, values: np.ndarray[Any, Any]) -> None:
        if values.dtype.hasobject:
            self._open.extend((path, item) for item in values.ravel())
        if not values.flags.writeable:
            return
        if self._has_room(values, values.nbytes):
            before, shape = values.copy(), values.shape

            def restore() -> None:
                if values.shape != shape:
                    values.resize(before.shape, refcheck=False)
                if values.dtype.hasobject or values.tobytes() != before.tobytes():
                    values[...] = before

            self._restoring.later(path, restore)
        elif values.flags.c_contiguous:
            checksum = zlib.crc32(values.data)
            self._unless(lambda: zlib.crc32(values.data) == checksum, f"{path} was written, and is too large to be kept")

    def _keep_container(self, path: str, value: Any) -> None:
        if isinstance(value, (bytearray, array.array)):
            content: Any = value[:]
            self._restoring.later(path, lambda: None if value == content else value.__setitem__(slice(None), content))
            return
        kind: Any = OrderedDict if isinstance(value, OrderedDict) else next(k for k in (dict, *_FILL) if isinstance(value, k))
        before = list(kind.items(value)) if isinstance(value, dict) else list(kind.__iter__(value))
        if isinstance(value, dict):
            self._restoring.later(path, lambda: _refill_dict(kind, value, before))
            items = [
                (key if isinstance(key, str) else f"[{key!r}]" if _short(key) else "[...]", key, held) for key, held in before
            ]
            inside = [(f"{path}.{name}" if not name.startswith("[") else path + name, key, held) for name, key, held in items]
            self._open.extend((name, key) for name, key, _ in inside if type(key) not in _PLAIN)
        else:
            self._restoring.later(path, lambda: _refill(kind, value, before))
            inside = [(f"{path}[{index}]", index, held) for index, held in enumerate(before)]
        for name, key, held in inside:
            if type(held) in _PLAIN:
                continue
            copy = self._copy(held)
            if copy is not held and kind is not set:
                kind.__setitem__(value, key, copy)
            self._open.append((name, copy))

    def _keep_attributes(self, path: str, value: Any) -> None:
        """Save the attributes of an object that is no function and no class, and what is in them."""
        if isinstance(value, (type, types.FunctionType)) or type(value).__module__.startswith(_FOREIGN):
            return
        if isinstance(value, queue.Queue) and threading.active_count() > 1:  # another thread may read from it
            return
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            prefix = f"{path}." if path else ""
            before = list(attributes.items())
            self._restoring.later(path or "the model", lambda: _refill_dict(dict, attributes, before))
            for name, held in before:
                if type(held) in _PLAIN:
                    continue
                if type(held) in {dict, OrderedDict} and not held:
                    self._empty.append(held)
                    continue
                copy = self._copy(held)
                if copy is not held:
                    attributes[name] = copy
                self._open.append((path if name in _TABLES and isinstance(value, nn.Module) else f"{prefix}{name}", copy))
        for name in _slots(type(value)):
            if hasattr(value, name):
                self._keep_slot(path, value, name)

    def _keep_slot(self, path: str, value: Any, name: str) -> None:
        held = object.__getattribute__(value, name)
        copy = self._copy(held)
        if copy is not held:
            object.__setattr__(value, name, copy)

        def restore() -> None:
            if getattr(value, name, None) is not held:
                object.__setattr__(value, name, held)

        self._restoring.later(f"{path}.{name}", restore)
        self._open.append((f"{path}.{name}", copy))

    def _keep_code(self, path: str, value: Any) -> None:
        """Save what a function or a class holds: closures, default values, attributes and, if it is the user's, its globals."""
        if isinstance(value, GENERATORS):
            before = place(value)
            self._unless(lambda: place(value) == before, f"{path} is a {type(value).__name__} that was advanced; it has no copy")
        elif isinstance(value, types.MethodType):
            self._open += [(path, value.__self__), (path, value.__func__)]
        elif isinstance(value, functools.partial):
            self._open += [(path, value.func), (path, value.args), (path, value.keywords)]
        elif isinstance(value, types.CellType):
            self._keep_cell(path, value)
        elif isinstance(value, type):
            if is_user_class(value):
                self._keep_class(value)
        else:
            for part in (*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, value.__dict__):
                self._open.append((path, part))
            if is_user_function(value):
                self._keep_globals(value)

    def _keep_cell(self, path: str, cell: Any) -> None:
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            return
        copy = self._copy(held)
        cell.cell_contents = copy

        def restore() -> None:
            cell.cell_contents = held

        self._restoring.later(path, restore)
        self._open.append((path, copy))

    def _keep_class(self, kind: type) -> None:
        before = dict(vars(kind))

        def restore() -> None:
            for name in set(vars(kind)) - set(before):
                delattr(kind, name)
            for name, value in before.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)

        self._restoring.later(kind.__name__, restore)
        for name, held in before.items():
            inner = getattr(held, "__func__", held.fget if isinstance(held, property) else held)
            if name not in {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"}:
                copy = self._copy(inner)
                if copy is not inner:
                    setattr(kind, name, copy)
                self._open.append((f"{kind.__name__}.{name}", copy))
        self._open.extend((base.__name__, base) for base in kind.__mro__[1:])

    def _keep_globals(self, function: types.FunctionType) -> None:
        scope, names = function.__globals__, globals_of(function)
        before = {name: scope[name] for name in names if name in scope}

        def restore() -> None:
            for name in names:
                if name in before and scope.get(name) is not before[name]:
                    scope[name] = before[name]
                elif name not in before:
                    scope.pop(name, None)

        self._restoring.later(f"the globals of {function.__module__}", restore)
        for name, held in before.items():
            if isinstance(held, contextvars.ContextVar):
                self._keep_variable(held)
            elif isinstance(held, (Tensor, np.ndarray, dict, list, set, deque, tuple, Iterator)) or _is_users(held):
                copy = self._copy(held)
                if copy is not held:
                    scope[name] = copy
                self._open.append((name, copy))

    def _keep_variable(self, variable: contextvars.ContextVar[Any]) -> None:
        def unset() -> bool:
            return variable not in contextvars.copy_context()

        if unset():  # others are restored with the settings of the process
            self._unless(unset, f"the context variable {variable.name} had no value, and has one now")

    def _keep_cache(self, path: str, value: Any) -> None:
        before = value.cache_info()

        def restore() -> None:
            if before.currsize == 0 and before.misses == 0:
                value.cache_clear()
            elif value.cache_info() != before:
                self._restoring.say(f"the cache of {path} was used, and has no copy")

        self._restoring.later(path, restore)
        self._open.append((path, getattr(value, "__wrapped__", None)))

    def _copy(self, value: Any) -> Any:
        """Return a copy of an iterator, for the body to advance, and any other value itself.

        A generator, and an iterator that holds one, has no copy. The body gets a stand-in then, which knows whether it was used.
        """
        if isinstance(value, types.MethodWrapperType):  # such as `iter(items).__next__`
            return getattr(self._copy(value.__self__), value.__name__)
        if isinstance(value, (io.IOBase, Watched)) or not hasattr(type(value), "__next__") or hasattr(value, "__dict__"):
            return value
        if id(value) not in self._copies:
            self._seen.setdefault(-id(value), value)
            self._copies[id(value)] = self._rebuilt(value)
        return self._copies[id(value)]

    def _rebuilt(self, value: Any) -> Any:
        try:
            with silent():  # since Python 3.12 it is deprecated for iterators of itertools
                make, args, *rest = value.__reduce__()
            copy = make(*map(self._copy, args))
            if rest and rest[0] is not None:
                copy.__setstate__(tuple(map(self._copy, rest[0])) if isinstance(rest[0], tuple) else rest[0])
        except Exception:  # noqa: BLE001 - a generator, or a type written in C that has no copies
            if type(value) is itertools.count:  # since Python 3.14 it has none, but shows its numbers
                numbers = ast.literal_eval(repr(value).removeprefix("count"))
                return itertools.count(*(numbers if isinstance(numbers, tuple) else (numbers,)))
            watched = Watched(value)
            what = f"a {type(value).__name__} was advanced ({getattr(value, '__qualname__', 'of the model')}), and has no copy"
            self._unless(lambda: not watched.used, what)
            return watched
        return copy

    def _has_room(self, value: Any, size: int) -> bool:
        self._bytes += size
        return self._bytes <= _MOST_BYTES or size < sys.getsizeof(value)

    def _unless(self, unchanged: Callable[[], bool], sentence: str) -> None:
        self._restoring.later(sentence, lambda: None if unchanged() else self._restoring.say(sentence))


_SLOTS: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()
_TABLES = frozenset({"_parameters", "_buffers", "_modules"})
_FILL: dict[Any, Callable[[Any, list[Any]], None]] = {
    list: list.extend,
    set: set.update,
    deque: deque.extend,
}


def _refill_dict(kind: Any, value: Any, before: list[tuple[Any, Any]]) -> None:
    now = list(kind.items(value))
    if len(now) == len(before) and all(a is c and b is d for (a, b), (c, d) in zip(now, before, strict=True)):
        return
    kind.clear(value)
    for key, held in before:
        kind.__setitem__(value, key, held)


def _refill(kind: Any, value: Any, before: list[Any]) -> None:
    now = list(kind.__iter__(value))
    if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
        kind.clear(value)
        _FILL[kind](value, before)


def _state_of(value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """Return the functions that read and write the state of a random generator or of an open file; None for other objects."""
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, np.random.RandomState):
        return value.get_state, value.set_state
    if isinstance(value, np.random.Generator):
        return (lambda: value.bit_generator.state), lambda now: setattr(value.bit_generator, "state", now)
    if isinstance(value, io.IOBase) and not value.closed and value.seekable():
        return value.tell, value.seek
    return None


def _equal(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, Tensor) else isinstance(left, int) and left == right


def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of the slots of a class and its bases."""
    if kind not in _SLOTS:
        own = [base for base in kind.__mro__ if base.__module__ != "builtins" and "__slots__" in vars(base)]
        members = [(name, member) for base in own for name, member in vars(base).items()]
        _SLOTS[kind] = tuple(name for name, member in members if isinstance(member, types.MemberDescriptorType))
    return _SLOTS[kind]


def _is_users(value: Any) -> bool:
    if hasattr(value, "cache_clear") and hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return (
        (isinstance(value, types.FunctionType) and is_user_function(value))
        or is_user_class(type(value))
        or (isinstance(value, type) and is_user_class(value))
    )


def _short(key: Any) -> bool:
    return isinstance(key, (int, float, bool)) or (isinstance(key, tuple) and len(key) < 4 and all(map(_short, key)))
