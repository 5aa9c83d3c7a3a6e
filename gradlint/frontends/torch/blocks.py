"""Models that are larger than the memory: blocks whose weights are drawn when an operator reads them, and let go of afterwards.

A block is a module whose weights fit; a larger module is taken apart. Its tensors are those of any module, but for their memory:
it is empty until a forward or a backward pass needs it, when the block draws its initial values, the same each time, and empty
again when others need the room. So one pass measures the whole model, block after block, in both directions.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradlint.errors import TargetError
from gradlint.frontends.torch.initialization import Scheme, inner_first, is_unset, unset
from gradlint.frontends.torch.lineage import tensors
from gradlint.graph import Statistics

_SMALL = 1 << 16  # elements of a tensor that is kept
_ROW = 1 << 12  # elements that are summed in their own precision
_PARTS = 4  # blocks that the room for weights holds at least


@dataclass(eq=False)
class _Block:
    """Modules that are drawn together, by path, inner ones first, and the tensors that are theirs."""

    paths: list[str]
    tensors: list[Tensor] = field(default_factory=list)
    drawn: bool = False

    @property
    def size(self) -> int:
        return sum(map(_size, self.tensors))


class Blocks(TorchDispatchMode):
    """A copy of a model on the meta device with weights on demand: while this mode is active, `module` can run.

    Args:
        module: The model. It stays on the meta device.
        name: Its name, for messages.
        room: Bytes that weights may take at a time. A single layer that is larger takes what it needs.

    Attributes:
        module: The copy. Its parameters have values only while an operator reads them.
        count: Number of blocks.
        largest: Bytes of the largest block.

    Raises:
        TargetError: Something initializes several blocks at once.
    """

    def __init__(self, module: nn.Module, name: str, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self._room = name, room
        meta = (tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_meta)
        made: dict[int, Any] = {id(tensor): _without_memory(tensor) for tensor in meta}
        self._held = {id(tensor) for tensor in made.values()}
        self.module: nn.Module = copy.deepcopy(module, dict(made))
        self._modules = dict(self.module.named_modules())
        self._scheme = Scheme(self.module, name)
        self._statistics: dict[int, Statistics] = {}
        self._small: dict[int, Tensor] = {}  # copies: rules read vectors of weights again and again
        self._lost: set[int] = set()
        self._blocks: list[_Block] = []
        self._owners: dict[int, _Block] = {}
        self._resident: OrderedDict[int, _Block] = OrderedDict()
        self._pinned: list[_Block] = []
        self._take_apart("", self.module, room // _PARTS)
        self.count = len(self._blocks)
        self.largest = max((block.size for block in self._blocks), default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, after the blocks whose weights it reads were drawn."""
        kwargs = kwargs or {}
        needed = [block for tensor in tensors((args, kwargs)) if (block := self._owner(tensor)) is not None]
        self._summon(needed)
        return func(*args, **kwargs)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the values of a tensor are those of a block, also through a view."""
        return self._owner(tensor) is not None

    def values(self, tensor: Tensor) -> Tensor:
        """Return a copy of the initial values of a tensor that is held."""
        block = self._owner(tensor)
        if (known := self._small.get(id(tensor))) is not None:
            return known.clone()
        if block is not None:
            self._summon([block])
        return tensor.detach().clone()

    def statistics(self, tensor: Tensor) -> Statistics | None:
        """Return the statistics of a whole weight of a block, if it was drawn before and all its values are finite."""
        return self._statistics.get(_memory(tensor))

    def _owner(self, tensor: Tensor) -> _Block | None:
        return self._owners.get(_memory(tensor))

    def _take_apart(self, path: str, module: nn.Module, most: int) -> None:
        """Divide a module into blocks of no more than `most` bytes, if its layers are no larger."""
        total = sum(map(_size, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()))
        whole = total <= most or not any(module.children()) or (self._writes_within(path) and total <= self._room)
        if not whole and self._writes_within(path):
            raise TargetError(
                f"{self._name}: {path or type(module).__name__} initializes the layers within it all at once, and its "
                f"{total / 1e9:.3g} GB of weights do not fit in the memory",
                hint="give it a method _init_weights(module), which is called for one layer at a time, or --memory-limit",
            )
        own = _Block(inner_first(module, path) if whole else [path])
        for inner in own.paths:
            for tensor in _own(self._modules[inner]).values():
                if id(tensor) in self._held and _memory(tensor) not in self._owners:
                    own.tensors.append(tensor)
                    self._owners[_memory(tensor)] = own
        if own.tensors:
            self._blocks.append(own)
        if not whole:
            for name, child in module.named_children():
                self._take_apart(f"{path}.{name}" if path else name, child, most)

    def _writes_within(self, path: str) -> bool:
        """Return whether a module initializes modules that lie within it."""
        writes = _Writes()
        with self._swapped([path], {}, every=True), writes:
            scratch = {id(tensor) for tensor in _own(self._modules[path]).values()}
            self._scheme.draw([path])
            within = (tensor for inner in self._modules[path].modules() for tensor in _own(inner).values())
            return any(id(tensor) not in scratch and _memory(tensor) in writes.written for tensor in within)

    def _summon(self, needed: Sequence[_Block]) -> None:
        for block in needed:
            if id(block) in self._resident:
                self._resident.move_to_end(id(block))
        for block in needed:
            if id(block) not in self._resident:
                self._release(self._room - block.size, needed)
                self._resident[id(block)] = block
                self._draw(block)

    def _release(self, room: int, needed: Sequence[_Block]) -> None:
        """Let go of the blocks that were used longest ago, until the others take no more than `room` bytes."""
        taken = sum(block.size for block in self._resident.values())
        for block in list(self._resident.values()):
            if taken <= room:
                return
            if block in needed or block in self._pinned:
                continue
            for tensor in block.tensors:
                if isinstance(tensor, nn.Parameter):  # a buffer may hold what a forward pass wrote, and is small
                    tensor.untyped_storage().resize_(0)
            del self._resident[id(block)]
            taken -= block.size

    def _draw(self, block: _Block) -> None:
        aliases: dict[int, Tensor] = {}
        for tensor in block.tensors:
            if tensor.untyped_storage().nbytes() == _size(tensor):
                continue
            tensor.untyped_storage().resize_(_size(tensor))
            aliases[id(tensor)] = tensor.data  # a version of its own: the passes do not see that it is written
            if not block.drawn:
                unset(tensor)
        self._pinned.append(block)
        try:
            with self._swapped(block.paths, aliases), self:  # what another block holds is drawn before it is read
                self._scheme.draw(block.paths)
        finally:
            self._pinned.pop()
        if block.drawn:
            return
        block.drawn = True
        for tensor in block.tensors:
            self._learn(tensor)

    def _learn(self, tensor: Tensor) -> None:
        """Remember of a tensor that was drawn for the first time whether it was, and its statistics."""
        values = tensor.data
        if values.numel() <= _SMALL:
            self._small[id(tensor)] = values.clone()
        if is_unset(values):
            self._lost.add(_memory(tensor))
        elif values.is_floating_point() and values.numel():
            low, high = (float(end) for end in torch.aminmax(values))
            whole = values.numel() // _ROW * _ROW
            rows, rest = values.reshape(-1)[:whole].reshape(-1, _ROW), values.reshape(-1)[whole:].double()
            mean = float(rows.sum(1).double().sum() + rest.sum()) / values.numel()
            square = float(torch.linalg.vector_norm(rows, dim=1).double().square().sum() + rest.square().sum()) / values.numel()
            largest = max(abs(low), abs(high))
            if math.isfinite(low) and math.isfinite(high) and math.isfinite(square):
                self._statistics[_memory(tensor)] = Statistics(mean, square, largest, finite=True)
            tensor.is_flat = low == high != 0.0  # type: ignore[attr-defined]

    def refuse_lost(self) -> None:
        """Raise TargetError if nothing initializes a tensor that was read."""
        if self._lost:
            lost = [
                path for path, module in self._modules.items() if self._lost.intersection(map(_memory, _own(module).values()))
            ]
            raise not_initialized(self._name, [f"{path or self._name} ({type(self._modules[path]).__name__})" for path in lost])

    @contextmanager
    def _swapped(self, paths: Sequence[str], aliases: dict[int, Tensor], *, every: bool = False) -> Iterator[None]:
        """Give modules tensors to initialize in place of their own: aliases, or where there is none, tensors without values.

        What a module is given instead of an alias meanwhile is copied to it. With `every`, modules within them are swapped too.
        """
        chosen = {id(self._modules[path]): self._modules[path] for path in paths}
        if every:
            chosen |= {id(inner): inner for path in paths for inner in self._modules[path].modules()}
        kept: list[tuple[Any, str, Tensor, Tensor]] = []
        made: dict[int, Tensor] = {}
        for module in chosen.values():
            for table in (module._parameters, module._buffers):  # noqa: SLF001
                for key, tensor in table.items():
                    if tensor is None or (_memory(tensor) not in self._owners and not every):
                        continue
                    alias = aliases.get(id(tensor))
                    if id(tensor) not in made:
                        stand_in = alias if alias is not None else torch.empty_like(tensor, device="meta")
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(stand_in, tensor.requires_grad) if is_parameter else stand_in
                    kept.append((table, key, tensor, made[id(tensor)]))
                    table[key] = made[id(tensor)]
        try:
            yield
            for table, key, tensor, _ in kept:
                now = table.get(key)
                if id(tensor) in aliases and now is not None and not now.is_meta and _memory(now) != _memory(tensor):
                    aliases[id(tensor)].copy_(now.detach())
        finally:
            for table, key, tensor, _ in kept:
                table[key] = tensor


class _Writes(TorchDispatchMode):
    """A mode that notes which memory operators write to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:  # noqa: SLF001
            self.written |= {_memory(tensor) for tensor in tensors((args, kwargs or {}))}
        return func(*args, **(kwargs or {}))


def not_initialized(name: str, layers: Sequence[str], shown: int = 5) -> TargetError:
    """Return the error that nothing initializes some layers."""
    more = f" and {len(layers) - shown} more" if len(layers) > shown else ""
    hint = "give them a method reset_parameters(), or build the model on the CPU"
    return TargetError(f"{name}: nothing initializes {', '.join(layers[:shown])}{more}", hint=hint)


def _own(module: nn.Module) -> dict[str, Tensor]:
    named = (*module.named_parameters(recurse=False, remove_duplicate=False), *module.named_buffers(recurse=False))
    return dict(named)


def _without_memory(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU like one on the meta device, with shape and strides, but no memory."""
    made = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
    made.untyped_storage().resize_(0)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _memory(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the identity of the memory, whose address changes
    except (NotImplementedError, RuntimeError):  # a layout or a subclass without memory of its own
        return 0
