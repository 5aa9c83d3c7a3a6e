"""The scalar that training would minimise, as a function of the model's weights."""

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
from gradlint.frontends.torch.state import same
from gradlint.frontends.user_code import described, raising_line
from gradlint.measurements import SURROGATE
from gradlint.ops import operator
from gradlint.recipe import Task


class Objective:
    """The user's loss, else the loss that the model itself returns, else a surrogate, which `stands_in` describes.

    A surrogate is the cross-entropy with random classes where the output looks like logits (two axes, or as many columns as
    the input has tokens), else half the mean squared distance to random numbers of unit variance. Raises InputError when the
    loss does not take what it is given, and ForwardError when the model raises.
    """

    def __init__(self, model: Runnable, task: Task, *, seed: int = 0) -> None:
        self.model = model
        self.task = task
        self.seed = seed
        self.stands_in = "" if task.loss is not None else "the loss that the model returns"
        self.parameters: Mapping[str, Tensor] = model.parameters()
        module = getattr(model, "module", None)
        self._buffers = [(b, b.detach().clone()) for b in module.buffers()] if module is not None else []

    def batch(self, index: int = 0) -> list[Any]:
        """The arrays of one batch: the given one, or one drawn anew for each index."""
        rng = np.random.default_rng(self.seed + index)
        return [spec.draw(rng) for spec in self.model.inputs]

    def restart(self, index: int = 0) -> None:
        """Seed the random state (dropout), and let buffers hold what they held at first (spectral norms)."""
        random.seed(self.seed + index)
        np.random.seed(self.seed + index)  # noqa: NPY002 - user code draws from the global state
        torch.manual_seed(self.seed + index)
        for buffer, values in self._buffers:
            buffer.data.copy_(values)

    def __call__(self, arrays: Sequence[Any] | None = None, target: Any = None) -> Tensor:
        """The loss of one batch, a scalar with a graph behind it."""
        target = self.task.target if target is None else target
        output = self.model.call(self.batch() if arrays is None else arrays)
        return self.of(output, target)

    def of(self, output: Any, target: Any = None) -> Tensor:
        """The loss of what the model returned."""
        if self.task.loss is not None:
            return _scalar(self._asked(output, fresh(self.task.target if target is None else target)))
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor):
            return _scalar(own)
        tensors = [leaf for leaf in pytree.tree_leaves(_prediction(output)) if _differentiable(leaf)]
        if not tensors:
            raise InputError("the model returns nothing that a loss could be computed of", hint="give a loss")
        if len(tensors) == 1 and tensors[0].numel() == 1:
            return _scalar(tensors[0])
        return self._surrogate(tensors)

    def _asked(self, output: Any, target: Any) -> Any:
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
                goal = torch.randn(tensor.shape, generator=generator).to(tensor.device)
                terms.append(0.5 * (tensor.float() - goal).square().mean())
            self.stands_in = f"{SURROGATE}: {'cross-entropy with random classes' if logits else 'distance to random numbers'}"
        return torch.stack(terms).sum()

    def _tokens(self) -> set[int | None]:
        return {spec.below for spec in self.model.inputs}

    def _logits(self, tensor: Tensor) -> Tensor:
        """Log-probabilities and probabilities as logits, whose softmax they are."""
        last = {node.op for ref in self.model.graph.outputs if operator((node := self.model.graph[ref.node]).op).final}
        return tensor.clamp_min(torch.finfo(tensor.dtype).tiny).log() if last == {"softmax"} else tensor


def fresh(target: Any) -> Any:
    """A target with copies of its tensors, for a loss that writes into them."""
    return pytree.tree_map_only(Tensor, torch.clone, target)


def tree(output: Any) -> Any:
    """What a model returned as a tree: output objects, which are mappings or dataclasses, as plain dicts."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(vars(output)) if is_dataclass(output) and hasattr(output, "__dict__") else output


def _prediction(output: Any) -> Any:
    """The part of an output to take a loss of: of several named ones the first tensor, for states and caches follow it."""
    output = tree(output)
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
    """Gradients of a loss, zeros for weights that it does not depend on. Raises ForwardError when the backward pass raises."""
    found = raw_gradients(loss, parameters, create_graph=create_graph)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def raw_gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Gradients of a loss, or of outputs under cotangents, None for what they do not depend on. Raises like `gradients`."""
    try:
        return list(torch.autograd.grad(outputs, list(inputs), cotangents, create_graph=create_graph, allow_unused=True))
    except Exception as error:
        raise ForwardError(f"the model's backward pass raised {described(error)}") from error


def at_outputs(loss: Tensor, returned: Any, outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The outputs of a watched run, each with the gradient of a loss at the same output of a plain run, which `returned` it.

    Outputs that the loss does not depend on are left out. Raises like `gradients`.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(tree(returned)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not leaves:
        return []
    known = [(leaf, vector) for leaf, vector in zip(leaves, raw_gradients(loss, leaves), strict=True) if vector is not None]
    twins = ((out, next((v for leaf, v in known if leaf.shape == out.shape and torch.equal(leaf, out)), None)) for out in outputs)
    return [(out, vector) for out, vector in twins if vector is not None and out.requires_grad]


@contextmanager
def preserved(parameters: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    """A context that may write to weights. Afterwards, and when what it gives is called, they hold what they held."""
    kept = {name: tensor.detach().clone() for name, tensor in parameters.items()}

    def restore() -> None:
        with torch.no_grad():
            for name, tensor in parameters.items():
                if not same(tensor, kept[name]):
                    tensor.data.copy_(kept[name])

    try:
        yield restore
    finally:
        restore()
