"""A case as a tool is given it: network, inputs, target, loss, recipe, batches and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.trained.data import batch
from benchmarks.trained.losses import LossFunction, loss_function
from benchmarks.trained.optimizers import optimizer, recipe_text
from benchmarks.trained.spec import Spec
from benchmarks.trained.train import network

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """What is known of a case before it is trained.

    Attributes:
        spec: The case.
        model_factory: Makes the network, in train mode, with the initial weights of a seed (0 if none is given).
        inputs: The inputs of the first batch: a tensor, or a tuple of positional inputs.
        target: The target of the first batch.
        loss: Called as `loss(output, target)`; returns a scalar.
        recipe: The recipe in gradlint's words, or None for an optimizer without a name there. It knows nothing of `omits`.
        batches: Pairs (inputs, target) of the first steps, the first of which is `inputs` and `target`.
        optimizer_factory: Makes the optimizer that the training run has, of the parameters of a network that it is to hold.
    """

    spec: Spec
    model_factory: Callable[..., nn.Module]
    inputs: Inputs
    target: Tensor
    loss: LossFunction
    recipe: str | None
    batches: list[tuple[Inputs, Tensor]]
    optimizer_factory: Callable[[nn.Module], Optimizer]


def task(spec: Spec, seed: int = 0, batches: int = 40) -> Case:
    """The case of a spec, with the batches of a training run of this seed."""
    pairs: list[tuple[Any, Tensor]] = []
    for index in range(batches):
        inputs, target = batch(spec, seed, index)
        pairs.append((inputs if len(inputs) > 1 else inputs[0], target))

    def model_factory(seed: int = seed) -> nn.Module:
        return network(spec, seed)

    def optimizer_factory(model: nn.Module) -> Optimizer:
        return optimizer(spec.training, model)

    return Case(
        spec=spec,
        model_factory=model_factory,
        inputs=pairs[0][0],
        target=pairs[0][1],
        loss=loss_function(spec.loss),
        recipe=recipe_text(spec.training),
        batches=pairs,
        optimizer_factory=optimizer_factory,
    )
