"""The model and the process are handed back as they came, and the user's errors are told with their line."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlint
from gradlint.errors import ForwardError
from gradlint.frontends.inputs import parse_inputs
from gradlint.frontends.torch.module import TorchRunnable
from tests.models.torch_samples import arrays, run


class Meddler(nn.Module):
    """Does everything to itself and to the process that a forward can do."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4, max_norm=0.1)  # its forward rescales the weight in place
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).eval().requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.fail = False
        self.state = "fresh"
        self.hook_calls = 0

    def forward(self, ids):
        self.calls = self.calls + 1
        self.state = torch.ones(3)
        self.register_forward_hook(lambda *_: None)
        self.linear.bias.requires_grad_(False)
        torch.set_default_dtype(torch.float64)
        warnings.simplefilter("always")
        random.random()
        np.random.rand()  # noqa: NPY002
        out = self.frozen(self.linear(self.norm(self.table(ids).mean(1)))) + torch.rand(4)
        if self.fail:
            raise ZeroDivisionError("meddled")
        return out


def facts(module):
    """All that must not change, by reference or by value."""
    return {
        "tensors": {name: value.clone() for name, value in module.state_dict().items()},
        "identity": {name: id(value) for name, value in (*module.named_parameters(), *module.named_buffers())},
        "grad": {name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in module.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "mode": {name: child.training for name, child in module.named_modules()},
        "hooks": {name: len(child._forward_hooks) + len(child._forward_pre_hooks) for name, child in module.named_modules()},
        "state": module.state,
        "random": (torch.get_rng_state(), random.getstate()),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "process": (torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters)),
    }


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("fail", [False, True], ids=["forward returns", "forward raises"])
@pytest.mark.parametrize("guarded", [False, True], ids=["one forward", "inside untouched"])
def test_the_model_and_the_process_are_untouched(fail, guarded):
    module = Meddler()
    module.fail = fail
    module.table(torch.arange(5)).sum().backward()
    before = facts(module)
    runnable = TorchRunnable(module, parse_inputs(("ids=int64[8,3]<5",)))

    def body():
        if guarded:
            with runnable.untouched():
                runnable.forward(arrays(runnable))[0].sum().backward()
        else:
            runnable.forward(arrays(runnable))

    if fail:
        with pytest.raises(ForwardError, match="meddled"):
            body()
    else:
        body()
    after = facts(module)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_inference_of_inputs_leaves_the_model_untouched():
    module = Meddler()
    before = facts(module)
    TorchRunnable(module)
    after = facts(module)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_an_optimizer_step_inside_is_undone():
    module = nn.Linear(4, 2)
    before = copy.deepcopy(module.state_dict())
    runnable = TorchRunnable(module)
    with runnable.untouched():
        runnable.forward(arrays(runnable))[0].sum().backward()
        torch.optim.SGD(module.parameters(), lr=1.0).step()
        assert not torch.equal(module.weight, before["weight"])
    assert same(dict(before), dict(module.state_dict()))
    assert module.weight.grad is None


def test_a_backward_pass_that_the_user_had_prepared_still_works():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    loss = module(torch.randn(8, 4)).sum()
    run(module, torch.randn(8, 4))
    loss.backward()
    assert module[0].weight.grad is not None


def test_no_global_hook_is_left_behind():
    from torch.nn.modules import module as internals

    run(nn.Linear(2, 2), torch.randn(2, 2))
    assert not internals._global_forward_hooks
    assert not internals._global_forward_pre_hooks


def test_the_seed_of_a_run_does_not_depend_on_the_state_of_the_process():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(8, 4)
    first = run(module, x).outputs[0]
    torch.manual_seed(123)
    torch.testing.assert_close(run(module, x).outputs[0], first)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).reshape(7, 7)  # THE LINE


def test_an_error_of_the_forward_is_told_with_its_message_and_line():
    runnable = TorchRunnable(Raises(), parse_inputs(("x=float32[8,4]",)))
    with pytest.raises(ForwardError, match="RuntimeError: shape '\\[7, 7\\]' is invalid") as caught:
        runnable.forward(arrays(runnable))
    code = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(code, 1) if text.endswith("# THE LINE"))
    assert caught.value.where.endswith(f"{Path(__file__).name}:{line}")
    assert type(caught.value.__cause__) is RuntimeError


def test_a_wrong_input_shape_is_such_an_error_too():
    runnable = TorchRunnable(Raises(), parse_inputs(("x=float32[8,5]",)))
    with pytest.raises(ForwardError, match="mat1 and mat2 shapes cannot be multiplied"):
        runnable.forward(arrays(runnable))


def test_an_error_in_a_later_run_is_told_too():
    class Moody(nn.Module):
        def forward(self, x):
            if x.sum() > 100:
                raise ValueError("too much")
            return x * 2

    runnable = TorchRunnable(Moody(), parse_inputs(("x=float32[3]",)))
    runnable.forward([np.ones(3)])
    with pytest.raises(ForwardError, match="ValueError: too much"):
        runnable.forward([np.full(3, 1e3)])


def test_a_buffer_whose_memory_the_forward_frees_is_not_read():
    """Reading it would end the process."""

    class Freeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.register_buffer("cache", torch.ones(1000))

        def forward(self, x):
            self.cache.untyped_storage().resize_(0)
            return self.layer(x)

    module = Freeing()
    task = {"loss": nn.functional.mse_loss, "target": torch.zeros(4, 8), "recipe": "sgd lr=0.1"}
    assert gradlint.check(module, torch.randn(4, 8), seeds=1, **task).verdict == "healthy"
    assert module.cache.untyped_storage().nbytes() == 4000
