"""Observe every operator of a loss function, and name the one that makes NaN or infinity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from gradlint.frontends.user_code import calling_line
from gradlint.measurements.faults import Fault, fault_of
from gradlint.measurements.rehearsal import NonFiniteUpdate
from gradlint.ops import by_torch
from gradlint.probe.provenance import Rank, carries, chain_of, fills, given_rank, kind_in, origins, rank_of
from gradlint.probe.recorder import square_sum

if TYPE_CHECKING:
    from torch.autograd.graph import Node as GradientNode

SQUASHING = ("softmax", "sigmoid")
HOPS = 4  # the most operators between a softmax and its logarithm: reshapes, or 1 - p
_INNER = 64  # the most autograd nodes of one call of a function
_READS = frozenset(
    {"size", "dim", "numel", "shape", "dtype", "device", "item", "tolist", "isnan", "isfinite", "isinf", "detach_"}
)


@dataclass(frozen=True, slots=True)
class Returned:
    """A tensor that the model returned: its node, its rank, and what put in its mask, if it is one."""

    node: str
    rank: Rank
    mask: str = ""


@dataclass(frozen=True, slots=True)
class _Call:
    """One result of an operator, or a tensor that was given: its rank, and what is needed to describe it.

    `node` is the node of the model that returned it; then `name` says what put in its mask, if it is one.
    """

    name: str
    rank: Rank
    kind: str | None = None
    before: tuple[int, ...] = ()
    operands: tuple[tuple[float, float], ...] = ()
    line: str = ""
    squashed: str = ""
    fault: Fault | None = None
    node: str = ""

    @property
    def place(self) -> str:
        """What it is called and where it stands."""
        return f"{self.name} ({self.line})" if self.line else self.name


class LossObserver(TorchFunctionMode):
    """A function mode that checks every operator of a loss function.

    `backward` is the first operator, coming from the loss, whose gradient is not finite although the gradients that arrive are.

    Args:
        given: The tensors that the model returned, by identity.
        returned: What the model returned.
        target: The target of the batch.
    """

    def __init__(self, given: Mapping[int, Returned], returned: Any, target: Any) -> None:
        super().__init__()
        self.backward: NonFiniteUpdate | None = None
        self._given = given
        self._calls: list[_Call] = []
        self._latest: dict[int, int] = {}
        self._kept: list[Tensor] = []  # an identity is reused once its tensor is gone
        self._targets = {id(leaf) for leaf in pytree.tree_leaves(target) if isinstance(leaf, Tensor)}
        self._hooked = {leaf.grad_fn for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = str(getattr(function, "__name__", function))
        outcome = function(*args, **kwargs)
        if name.strip("_") not in _READS:
            self._observe(name, args, kwargs, outcome)
        return outcome

    # forward ------------------------------------------------------------------------------------------------------------

    def forward(self, loss: Tensor | None) -> NonFiniteUpdate | str | None:
        """Return the culprit of a loss that is not finite, or the id of the node of the model that returned its cause.

        The loss is None if it raised: then all results count. The result is None if all of them are finite, or masks.
        """
        ends = [self._latest[id(loss)]] if id(loss) in self._latest else []
        if loss is None or not ends:
            ends = list(range(len(self._calls)))
        chain = chain_of(ends, lambda key: self._calls[key].before, lambda key: self._calls[key].rank, int)
        if chain is None:
            return None
        call, becomes, mask = (self._calls[key] if key is not None else None for key in chain)
        assert call is not None
        if call.node:
            return call.node
        return self._update(call, becomes, mask)

    def _update(self, call: _Call, becomes: _Call | None = None, mask: _Call | None = None) -> NonFiniteUpdate:
        return NonFiniteUpdate(
            "",
            call.name,
            call.kind or "NaN",
            call.operands,
            call.line,
            squashed=call.squashed,
            fault=call.fault,
            becomes=becomes.place if becomes is not None else "",
            mask=mask.place if mask is not None else "",
        )

    def _observe(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], outcome: Any) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        written = leaves[:1] if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) else []
        operands = [leaf for leaf in leaves if leaf.is_floating_point()]
        outs = [out for out in (*written, *pytree.tree_leaves(outcome)) if isinstance(out, Tensor) and out.is_floating_point()]
        fresh = [out for out in outs if any(out is one for one in written) or not any(out is one for one in operands)]
        if not fresh:
            return
        before = tuple(self._key(leaf, stale=any(leaf is one for one in written)) for leaf in operands)
        name = name.strip("_")
        for out in {id(out): out for out in fresh}.values():
            self._record(out, name, before, [*args, *kwargs.values()], fault=_labels(name, args, kwargs))
            if out.grad_fn is not None:
                self._check_backward(out.grad_fn, self._latest[id(out)], operands)

    def _record(self, out: Tensor, name: str, before: tuple[int, ...], args: Sequence[Any], *, fault: Fault | None) -> None:
        """Record a result. `fault` is what is wrong with the labels, if the result is NaN and its operands are finite."""
        low, high = _range(out)
        operands = [self._calls[key] for key in before]
        ranges = tuple(_range(self._kept[key]) for key in before)
        numbers = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, float)]
        given = any(kind_in(number, number) == "infinity" for number in numbers)
        worst = max((call.rank for call in operands), default=Rank.FINITE)
        deliberate = (fills(name) or not before) and (given or worst < Rank.INFINITY)
        rank = rank_of(low, high, [worst], carried=carries(name, by_torch(name).kind), deliberate=deliberate)
        kind, masked = kind_in(low, high), given or any(kind_in(*ends) is not None for ends in ranges)
        if kind != "NaN" or masked:
            fault = None
        if kind is not None:
            fault = fault or fault_of(name, kind, ranges, backward=False, masked=masked)
        squashed = next(filter(None, (_squashed(self._kept[key]) for key in before)), "")
        self._add(out, _Call(name, rank, kind, before, ranges, _line(), squashed, fault))

    def _key(self, tensor: Tensor, *, stale: bool) -> int:
        """Return the key of an operand. A tensor that was changed out of sight, through a view, counts as given."""
        key = self._latest.get(id(tensor))
        low, high = _range(tensor)
        if key is not None and (stale or self._calls[key].kind == kind_in(low, high)):
            return key
        kind = kind_in(low, high)
        at = self._given.get(id(tensor))
        rank = Rank.FINITE if stale or kind is None else given_rank(low, high) if at is None else at.rank
        is_target = id(tensor) in self._targets
        name = at.mask if at is not None else "the target" if is_target else "a constant"
        fault = Fault.TARGET if is_target else Fault.CONSTANT
        return self._add(tensor, _Call(name, rank, kind, fault=fault, node=at.node if at is not None else ""))

    def _add(self, tensor: Tensor, call: _Call) -> int:
        self._calls.append(call)
        self._kept.append(tensor)
        self._latest[id(tensor)] = len(self._calls) - 1
        return len(self._calls) - 1

    # backward -----------------------------------------------------------------------------------------------------------

    def _check_backward(self, grad_fn: GradientNode, key: int, operands: Sequence[Tensor]) -> None:
        """Check the gradients of all autograd nodes of one call."""

        def check(gradients: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> None:
            kinds = [kind for gradient in gradients if gradient is not None and (kind := kind_in(*_range(gradient))) is not None]
            if self.backward is None and kinds and all(part is None or kind_in(*_range(part)) is None for part in arriving):
                self.backward = self._backward_update(self._calls[key], "NaN" if "NaN" in kinds else kinds[0])

        stop = {operand.grad_fn for operand in operands}
        stack = [grad_fn]
        for _ in range(_INNER):
            if not stack:
                break
            node = stack.pop()
            if node in self._hooked:
                continue
            self._hooked.add(node)
            node.register_hook(check)
            stack += [before for before, _ in node.next_functions if before is not None and before not in stop]

    def _backward_update(self, call: _Call, kind: str) -> NonFiniteUpdate:
        masked = any(kind_in(*ends) is not None for ends in call.operands)
        masks = origins(call.before, lambda key: self._calls[key].before, lambda key: self._calls[key].rank, Rank.MASK)
        found = self._calls[min(masks)] if masks else None
        fault = fault_of(call.name, kind, call.operands, backward=True, masked=masked)
        return NonFiniteUpdate(
            "",
            call.name,
            kind,
            call.operands,
            call.line,
            backward=True,
            squashed=call.squashed,
            fault=fault,
            mask=found.place if found is not None else "",
        )


def _labels(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fault | None:
    """Return what is wrong with the labels of a cross entropy whose logits are finite."""
    if name not in {"cross_entropy", "nll_loss"}:
        return None
    labels = kwargs["target"] if "target" in kwargs else args[1] if len(args) > 1 else None
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    if not labels.numel():
        return Fault.EMPTY
    ignored = kwargs.get("ignore_index", args[4] if len(args) > 4 else -100)
    if bool((labels == ignored).all()):
        return Fault.IGNORED
    return Fault.WEIGHTLESS if kwargs.get("weight", args[2] if len(args) > 2 else None) is not None else None


def _squashed(tensor: Tensor) -> str:
    """Return "softmax" or "sigmoid" if a tensor is the result of one, directly or through few operators; otherwise ""."""
    grad_fn = tensor.grad_fn
    for _ in range(HOPS):
        if grad_fn is None:
            return ""
        name = grad_fn.name().lower()
        found = next((kind for kind in SQUASHING if name.startswith(kind)), "")
        if found:
            return found
        grad_fn = next((before for before, _ in grad_fn.next_functions if before is not None), None)
    return ""


def _range(tensor: Tensor) -> tuple[float, float]:
    return square_sum(tensor.detach())[1:]


def _line() -> str:
    """Return the line of user code that is running."""
    line = calling_line(0)
    return str(line) if line else ""
