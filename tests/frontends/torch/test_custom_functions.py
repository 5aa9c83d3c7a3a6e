"""Custom autograd functions: one node each, whether `apply` is read from the class in the run or before it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.torch_samples import check_sound, run


class ScaledSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return torch.exp2(x) * scale

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum(0)


bound_apply = ScaledSquare.apply


@pytest.mark.parametrize("apply", [bound_apply, None], ids=["bound early", "looked up"])
def test_a_custom_function_is_one_node_and_the_graph_stays_connected(apply):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.gain = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.linear((apply or ScaledSquare.apply)(self.linear(x), self.gain))

    module = Custom()
    result = run(module, torch.randn(8, 4))
    node = result.node("unknown")
    assert node.attrs["name"] == "ScaledSquare"
    assert node.notes == {"custom-function:ScaledSquare"}
    assert node.weights["gain"].name == "gain"
    assert [node.id for node in result.graph] == ["x", "linear:linear", "unknown", "linear:linear:1"]
    check_sound(result, module)


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return torch.exp2(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output * 0.5)

    @staticmethod
    def backward(ctx, grad):
        return 2.0 * grad * ctx.saved_tensors[0]


bound_exponential = Exponential.apply


@pytest.mark.parametrize("apply", [bound_exponential, None], ids=["bound early", "looked up"])
def test_what_a_custom_function_computes_for_its_backward_pass_is_no_node(apply):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return (apply or Exponential.apply)(self.linear(x))

    module = Custom()
    result = run(module, torch.randn(8, 4))
    assert [node.id for node in result.graph] == ["x", "linear:linear", "unknown"]
    assert result.node("unknown").notes == {"custom-function:Exponential"}
    assert result.seen["unknown"][0].requires_grad
    check_sound(result, module)
