"""Save and restore the state of a module and of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.frontends.torch.state.objects import Keeper
from gradlint.frontends.torch.state.process import keep_settings, usual_context
from gradlint.frontends.torch.state.randomness import seeded
from gradlint.frontends.torch.state.restoring import Restoring
from gradlint.frontends.torch.state.tensors import has_memory, same
from gradlint.frontends.turns import turn

__all__ = ["has_memory", "same", "untouched", "untouched_process", "usable"]


@contextmanager
def untouched(module: object, others: object = None) -> Iterator[list[str]]:
    """Restore the module and the process on exit, also if the body of the context raises.

    `module` may also be a function, as a loss is; what its closure and its default values hold is restored. `others` is nested in
    lists and dicts, such as the arguments of the module, and what can be reached from there is restored too.

    The state of the module consists of the values, the shape, `.grad` and `requires_grad` of all tensors, and of the attributes
    of every submodule with all that they hold: hooks, lists, dicts, other modules, arrays, random generators, iterators. The
    state of the process is that of `untouched_process`. While the body runs, every `.grad` is None at first and the random states
    are seeded, so that two runs of the body give the same result. Other threads wait until it has ended.

    Yields:
        A list that is filled on exit with what could not be restored, a sentence each.
    """
    owner = module if isinstance(module, nn.Module) else None
    with _guarded(owner) as restoring:
        tensors = () if owner is None else (*owner.named_parameters(), *owner.named_buffers())
        keeper = Keeper(restoring, {id(tensor) for _, tensor in tensors})
        for name, tensor in tensors:
            keeper.keep(name, tensor)
        for name, child in [("the loss", module)] if owner is None else owner.named_modules():
            if isinstance(child, torch.jit.ScriptModule):
                restoring.later(f"{name}.training", partial(setattr, child, "training", child.training))
            else:
                keeper.keep(name, child)
                keeper.keep(type(child).__name__, type(child))
        keeper.keep("the inputs", others)
        yield restoring.left


@contextmanager
def untouched_process(module: nn.Module | None = None) -> Iterator[list[str]]:
    """Restore only the state of the process on exit, and seed the random states; see `untouched`.

    That is: the random states of torch, Python and numpy, the settings of `process.keep_settings`, and hooks of all modules. The
    body runs as in a plain script whatever surrounds it: outside inference mode, with float32 and a device with values as the
    defaults, unless `module` has tensors of the default dtype.
    """
    with _guarded(module) as restoring:
        yield restoring.left


@contextmanager
def _guarded(module: nn.Module | None) -> Iterator[Restoring]:
    restoring = Restoring()
    with ExitStack() as stack:
        stack.enter_context(turn())
        keep_settings(restoring)
        stack.callback(restoring.restore)
        stack.enter_context(usual_context(module))
        stack.enter_context(seeded())
        yield restoring


def usable(values: Any) -> Any:
    """Return nested containers with the tensors that were made in inference mode replaced by copies that autograd takes."""

    def copied(tensor: Tensor) -> Tensor:
        with torch.inference_mode(False):
            return tensor.clone()

    return pytree.tree_map_only(Tensor, lambda tensor: copied(tensor) if tensor.is_inference() else tensor, values)
