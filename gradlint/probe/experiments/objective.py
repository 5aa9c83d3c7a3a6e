"""The objective: the scalar that training minimizes, as a function of the model's weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError, InputError
from gradlint.frontends.base import Runnable
from gradlint.frontends.torch.state import has_memory, same
from gradlint.frontends.user_code import described, raising_line
from gradlint.measurements import SURROGATE
from gradlint.ops import operator
from gradlint.recipe import Task


class Objective:
    """The loss of a model: the user's loss, or else the loss that the model itself returns, or else a surrogate.

    The surrogate is the cross-entropy with random classes if the output looks like logits (two axes, or as many columns as the
    input has tokens), and otherwise half the mean squared distance to random numbers of unit variance. `stands_in` describes the
    loss if it is not the user's. Calls raise InputError if the loss raises or returns anything but one real number, and
    ForwardError if the model raises.
    """

    def __init__(self, model: Runnable, task: Task, *, seed: int = 0) -> None:
        self.model = model
        self.task = task
        self.seed = seed
        self.stands_in = "" if task.loss is not None else "the loss that the model returns"
        self.parameters: Mapping[str, Tensor] = model.parameters()
        module = getattr(model, "module", None)
        buffers = module.buffers() if module is not None else ()
        self._buffers = [(b, b.detach().clone()) for b in buffers if has_memory(b)]

    def batch(self, index: int = 0) -> list[Any]:
        """Return the arrays of one batch: the given ones, and for inferred inputs new ones for each `index`."""
        rng = np.random.default_rng(self.seed + index)
        return [spec.draw(rng) for spec in self.model.inputs]

    def restart(self, index: int = 0) -> None:
        """Seed the random states, for dropout, and restore the initial values of buffers, for spectral norms."""
        random.seed(self.seed + index)
        np.random.seed(self.seed + index)  # noqa: NPY002 - user code draws from the global state
        torch.manual_seed(self.seed + index)
        for buffer, values in self._buffers:
            if has_memory(buffer):
                buffer.data.copy_(values)

    def __call__(self, arrays: Sequence[Any] | None = None, target: Any = None) -> Tensor:
        """Run the model on one batch and return the loss, a scalar that requires grad."""
        target = self.task.target if target is None else target
        output = self.model.call(self.batch() if arrays is None else arrays)
        return self.of(output, target)

    def of(self, output: Any, target: Any = None) -> Tensor:
        """Return the loss of an output of the model, a scalar that requires grad."""
        if self.task.loss is not None:
            return _scalar(self._call_loss(output, copy_target(self.task.target if target is None else target)))
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor):
            return _scalar(own)
        tensors = [leaf for leaf in pytree.tree_leaves(_prediction(output)) if _differentiable(leaf)]
        if not tensors:
            raise InputError("the model returns nothing that a loss could be computed of", hint="give a loss")
        if len(tensors) == 1 and tensors[0].numel() == 1:
            return _scalar(tensors[0])
        return self._surrogate(tensors)

    def _call_loss(self, output: Any, target: Any) -> Any:
        assert self.task.loss is not None
        try:
            return self.task.loss(output, target)
        except Exception as error:
            line = raising_line(error)
            where = f" ({line})" if line else ""
            hint = "it is called as loss(output, target)"
            raise InputError(f"the loss raised {described(error)}{where}", hint=hint) from error

    def _surrogate(self, outputs: Sequence[Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        terms = []
        for tensor in outputs:
            classes = tensor.shape[-1] if tensor.ndim else 1
            logits = tensor.ndim > 1 and classes > 1 and (tensor.ndim == 2 or classes in self._tokens())
            if logits:
                drawn = torch.randint(classes, tensor.shape[:-1], generator=generator).to(tensor.device)
                terms.append(functional.cross_entropy(self._logits(tensor).reshape(-1, classes).float(), drawn.reshape(-1)))
            else:
                goal = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device)
                terms.append(0.5 * (tensor.float() - goal).square().mean())
            self.stands_in = f"{SURROGATE}: {'cross-entropy with random classes' if logits else 'distance to random numbers'}"
        return torch.stack(terms).sum()

    def _tokens(self) -> set[int | None]:
        return {spec.below for spec in self.model.inputs}

    def _logits(self, tensor: Tensor) -> Tensor:
        """Convert the output of a final softmax to logits. Log-probabilities already are logits."""
        last = {node.op for ref in self.model.graph.outputs if operator((node := self.model.graph[ref.node]).op).final}
        return tensor.clamp_min(torch.finfo(tensor.dtype).tiny).log() if last == {"softmax"} else tensor


def copy_target(target: Any) -> Any:
    """Return a copy of a target with cloned tensors, because a loss may write to them."""
    return pytree.tree_map_only(Tensor, torch.clone, target)


def as_tree(output: Any) -> Any:
    """Convert an output object, which is a mapping or a dataclass, to a plain dict. Other outputs are unchanged."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(vars(output)) if is_dataclass(output) and hasattr(output, "__dict__") else output


def _prediction(output: Any) -> Any:
    """Return the part of an output that the surrogate uses: the first tensor of a dict, because states and caches follow it."""
    output = as_tree(output)
    return next((value for value in output.values() if _differentiable(value)), output) if isinstance(output, dict) else output


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point() and bool(leaf.numel())


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the loss returns {what}, not one number", hint="reduce it, as in loss.mean()")
    if loss.is_complex():
        raise InputError("the loss returns a complex number", hint="take its absolute value or its real part")
    if not loss.requires_grad:
        raise InputError("the loss does not depend on the model's weights", hint="it is called as loss(output, target)")
    return loss.reshape(())


def gradients(loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Return the gradients of a loss; zeros for weights that it does not depend on.

    Raises ForwardError if the backward pass raises.
    """
    found = raw_gradients(loss, parameters, create_graph=create_graph)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def raw_gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Return the gradients of a loss, or of outputs with cotangents; None for an input that they do not depend on.

    Raises ForwardError if the backward pass raises.
    """
    try:
        return list(torch.autograd.grad(outputs, list(inputs), cotangents, create_graph=create_graph, allow_unused=True))
    except Exception as error:
        raise ForwardError(f"the model's backward pass raised {described(error)}") from error


def output_cotangents(loss: Tensor, returned: Any, outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair the outputs of a run with a tap with the gradients of the loss at the equal outputs of a plain run.

    `returned` is what the model returned in the plain run, from which `loss` was computed. Outputs that the loss does not depend
    on are left out. Raises ForwardError if the backward pass raises.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(as_tree(returned)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not leaves:
        return []
    known = [(leaf, vector) for leaf, vector in zip(leaves, raw_gradients(loss, leaves), strict=True) if vector is not None]
    twins = ((out, next((v for leaf, v in known if leaf.shape == out.shape and torch.equal(leaf, out)), None)) for out in outputs)
    return [(out, vector) for out, vector in twins if vector is not None and out.requires_grad]


@contextmanager
def preserved(parameters: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    """Restore the values of the weights on exit. The context gives a function that restores them at once."""
    kept = {name: tensor.detach().clone() for name, tensor in parameters.items() if has_memory(tensor)}

    def restore() -> None:
        with torch.no_grad():
            for name, values in kept.items():
                if has_memory(parameters[name]) and not same(parameters[name], values):
                    parameters[name].data.copy_(values)

    try:
        yield restore
    finally:
        restore()
