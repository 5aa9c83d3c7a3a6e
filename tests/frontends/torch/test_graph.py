"""What the graph of a torch module says of its operators, weights and edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlint.graph import Ref
from tests.models.torch_samples import again, arrays, check_sound, run, sources


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, groups=3)
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.branch = nn.Conv2d(6, 6, 1, bias=False)
        self.head = nn.Linear(6, 2)
        self.gain = nn.Parameter(torch.ones(6, 1, 1))
        self.shift = nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.conv(x)), 0.2)
        x = x + F.dropout(self.branch(x), 0.25, training=self.training)
        x = x * self.gain + self.shift
        return self.head(x.mean((2, 3)))


def test_roles_attributes_and_edges_of_a_convolutional_block():
    module = Residual()
    result = run(module, torch.randn(8, 3, 9, 9))
    conv, norm = result.nodes("conv")[0], result.node("batch_norm")
    assert (conv.id, conv.module, conv.module_class, conv.attrs["groups"], conv.attrs["stride"]) == (
        "conv:conv",
        "conv",
        "Conv2d",
        3,
        (2, 2),
    )
    assert {role: weight.name for role, weight in conv.weights.items()} == {"weight": "conv.weight", "bias": "conv.bias"}
    assert {role: weight.name for role, weight in norm.weights.items()} == {
        "scale": "norm.weight",
        "bias": "norm.bias",
        "running_mean": "norm.running_mean",
        "running_var": "norm.running_var",
    }
    assert norm.attrs["training"] is True
    assert norm.attrs["eps"] == pytest.approx(1e-3)
    assert result.node("leaky_relu").attrs["negative_slope"] == 0.2
    dropout = result.node("dropout")
    assert (dropout.attrs["p"], dropout.attrs["training"]) == (0.25, True)
    skip, shift = result.nodes("add")
    assert sources(skip) == ["leaky_relu", "dropout"]
    assert shift.weights["bias"].name == "shift"
    assert result.node("mul").weights["scale"].name == "gain"
    assert result.graph.outputs == (Ref("head:linear"),)
    check_sound(result, module)


def test_mode_eval_is_seen_by_the_operators():
    result = run(Residual(), torch.randn(8, 3, 9, 9), mode="eval")
    assert result.graph.mode == "eval"
    assert result.node("batch_norm").attrs["training"] is False


def test_weight_values_are_those_of_the_parameters_and_fan_in_is_that_of_torch():
    module = nn.Sequential(nn.Linear(5, 3), nn.Unflatten(1, (3, 1)), nn.ConvTranspose1d(3, 4, 2))
    linear, conv = (run(module, torch.randn(2, 5)).node(op).weights["weight"] for op in ("linear", "conv_transpose"))
    np.testing.assert_array_equal(linear.array(), module[0].weight.detach().numpy())
    assert (linear.fan_in, linear.fan_out, conv.fan_out) == (5, 3, 4)


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(lambda x, w: x @ w, id="operator"),
        pytest.param(torch.matmul, id="matmul"),
        pytest.param(torch.mm, id="mm"),
        pytest.param(lambda x, w: x @ w.t().contiguous().t(), id="transposed twice"),
        pytest.param(lambda x, w: torch.addmm(torch.ones(3), x, w), id="addmm"),
        pytest.param(lambda x, w: torch.einsum("bi,io->bo", x, w), id="einsum"),
        pytest.param(lambda x, w: torch.einsum("oi,bi->bo", w.t(), x), id="einsum with the weight first"),
        pytest.param(lambda x, w: (w.t() @ x.t()).t(), id="weight on the left"),
        pytest.param(lambda x, w: F.linear(x, w.t()), id="linear"),
    ],
)
def test_a_product_with_a_parameter_is_linear_and_its_matrix_maps_inputs_to_outputs(product):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return product(x, self.w)

    module = Product()
    weight = run(module, torch.randn(8, 4)).node("linear").weights["weight"]
    assert (weight.name, weight.fan_in, weight.fan_out, weight.trainable) == ("w", 4, 3, True)
    np.testing.assert_allclose(weight.matrix(), module.w.detach().numpy().T)


def test_a_product_of_activations_is_a_matmul():
    class Gram(nn.Module):
        def forward(self, x):
            return F.linear(x, x) + x @ x.t()

    assert len(run(Gram(), torch.randn(4, 4)).nodes("matmul")) == 2


def test_scalar_operands_keep_their_side():
    class Scalars(nn.Module):
        def forward(self, x):
            return 1 / (2 - x) + x / 4 + x.square()

    result = run(Scalars(), torch.randn(3))
    inverse, quarter = result.nodes("div")
    assert (inverse.inputs, inverse.attrs["constant"]) == ((None, Ref("sub")), 1.0)
    assert (quarter.inputs, quarter.attrs["constant"]) == ((Ref("x"), None), 4.0)
    assert result.node("sub").inputs == (None, Ref("x"))
    assert result.node("pow").attrs["constant"] == 2.0


@pytest.mark.parametrize(("kind", "op"), [(nn.LSTM, "lstm"), (nn.GRU, "gru"), (nn.RNN, "rnn")])
def test_a_recurrence_is_one_node_with_its_weights_by_layer_and_direction(kind, op):
    module = kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)
    result = run(module, torch.randn(8, 6, 4))
    node = result.node(op)
    assert {role: w.name for role, w in node.weights.items() if role.endswith("l1_reverse")} == {
        "weight_l1_reverse": "weight_ih_l1_reverse",
        "recurrent_l1_reverse": "weight_hh_l1_reverse",
        "bias_l1_reverse": "bias_ih_l1_reverse",
        "recurrent_bias_l1_reverse": "bias_hh_l1_reverse",
    }
    assert (node.weights["weight"].name, node.weights["recurrent"].name) == ("weight_ih_l0", "weight_hh_l0")
    assert (
        node.attrs.items()
        >= {"num_layers": 2, "bidirectional": True, "batch_first": True, "time_axis": 1, "hidden_size": 5}.items()
    )
    check_sound(result, module)


def test_a_projection_of_an_lstm_and_the_nonlinearity_of_an_rnn_are_told():
    lstm = run(nn.LSTM(4, 6, proj_size=3, bias=False), torch.randn(5, 2, 4)).node("lstm")
    assert lstm.weights["projection_l0"].name == "weight_hr_l0"
    assert lstm.attrs["time_axis"] == 0
    assert run(nn.RNN(4, 6, nonlinearity="relu"), torch.randn(5, 2, 4)).node("rnn").attrs["nonlinearity"] == "relu"


def test_attention_is_one_node_with_its_projections():
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    result = run(module, torch.randn(2, 5, 8))
    weights = result.node("multi_head_attention").weights
    assert {role: weight.name for role, weight in weights.items()} == {
        "in_proj": "self_attn.in_proj_weight",
        "in_proj_bias": "self_attn.in_proj_bias",
        "out_proj": "self_attn.out_proj.weight",
        "out_proj_bias": "self_attn.out_proj.bias",
    }
    assert [len(node.inputs) for node in result.nodes("add")] == [2, 2]
    check_sound(result, module)


def test_weights_alone_make_no_nodes_but_derived_weights():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(16, 4)
            self.register_buffer("ids", torch.arange(16))
            self.mask = torch.ones(5, 1)

        def forward(self, x):
            return (x + self.table(self.ids[: x.shape[1]])) * self.mask

    module = Positions()
    result = run(module, torch.randn(2, 5, 4))
    add = result.node("add")
    assert len(result.graph) == 3
    assert (add.weights["bias"].name, add.weights["bias"].shape) == ("table.weight", (5, 4))
    np.testing.assert_array_equal(add.weights["bias"].array(), module.table.weight[:5].detach().numpy())
    assert result.node("mul").inputs == (Ref("add"), None)


@pytest.mark.parametrize(
    ("normed", "names"),
    [
        (nn.utils.parametrizations.weight_norm, {"parametrizations.weight.original0", "parametrizations.weight.original1"}),
        (nn.utils.parametrizations.spectral_norm, {"parametrizations.weight.original"}),
        (nn.utils.parametrizations.orthogonal, {"parametrizations.weight.original"}),
        (nn.utils.weight_norm, {"weight_g", "weight_v"}),
        (nn.utils.spectral_norm, {"weight_orig"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_normalized_weight_is_the_effective_one_under_the_names_of_its_parameters(normed, names):
    module = nn.Sequential(normed(nn.Linear(4, 4)))
    result = run(module, torch.randn(2, 4))
    weight = result.node("linear").weights["weight"]
    assert {name.removeprefix("0.") for name in weight.name.split("+")} == names
    expected = result.seen["input"][0].detach().numpy() @ weight.array().T + module[0].bias.detach().numpy()
    np.testing.assert_allclose(result.outputs[0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    check_sound(result, module)


def test_tied_weights_have_one_name_and_a_shared_module_is_called_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 6)
            self.mix = nn.Linear(6, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.mix(self.mix(self.table(ids)).tanh()))

    module = Tied()
    result = run(module, torch.randint(0, 11, (8, 5)))
    assert result.graph["head:linear"].weights["weight"].name == "table.weight"
    assert [node.call for node in result.nodes("linear") if node.module == "mix"] == [0, 1]
    assert "mix:linear:1" in result.graph
    check_sound(result, module)


def test_integers_stay_in_the_graph_and_the_first_float_requires_grad():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.randn(7, 4))
            self.rows = nn.Parameter(torch.randn(7, 4))

        def forward(self, ids):
            return self.table(ids + 1) * ids.float()[..., None] + self.rows[ids] * (ids > 2)[..., None]

    result = run(Frozen(), torch.randint(0, 6, (8, 5)))
    table, rows = result.nodes("embedding")
    assert (table.weights["weight"].trainable, rows.weights["weight"].trainable) == (False, True)
    assert (sources(table)[0], sources(rows)[0], rows.weights["weight"].name) == ("add", "ids", "rows")
    assert (result.graph["add"].dtype, result.node("compare").dtype) == ("int64", "bool")
    assert result.seen[table.id][0].requires_grad
    assert result.seen[result.node("cast").id][0].requires_grad


def test_structured_inputs_and_outputs_are_flattened_with_names():
    class Structured(nn.Module):
        def forward(self, batch, pair, *, scale: float, flag=None):
            return {"sum": batch["a"] + pair[0], "rest": [pair[1] * scale], "ids": batch["ids"]}

    batch = {"a": torch.randn(3), "ids": torch.arange(3)}
    result = run(Structured(), batch, (torch.randn(3), torch.randn(3)), kwargs={"scale": 2.0})
    assert [spec.name for spec in result.runnable.inputs] == ["batch.a", "batch.ids", "pair.0", "pair.1"]
    assert result.graph.inputs == ("batch.a", "batch.ids", "pair.0", "pair.1")
    assert result.graph.outputs == (Ref("add"), Ref("mul"))


def test_several_outputs_have_ports_and_edits_keep_the_structure():
    class Split(nn.Module):
        def forward(self, x):
            low, high = x.chunk(2, dim=1)
            top = high.max(dim=1)
            return low.sum(1) + top.values

    result = run(Split(), torch.randn(3, 4))
    pieces = next(node.id for node in result.graph if node.attrs.get("name") == "chunk")
    assert [ref for node in result.graph for ref in node.inputs if ref and ref.node == pieces] == [Ref(pieces, 1), Ref(pieces, 0)]

    def zero_high(node: str, outputs: tuple[Tensor, ...]):
        return (outputs[0], outputs[1] * 0) if node == pieces else None

    with result.runnable.untouched():
        (edited,) = result.runnable.forward(arrays(result.runnable), edit=zero_high)
    torch.testing.assert_close(edited, result.seen["x"][0][:, :2].sum(1))


def test_an_edit_of_an_operator_in_place_reaches_every_later_reader():
    class InPlace(nn.Module):
        def forward(self, x):
            y = x * 1.0
            y.relu_()
            return y + 1

    result = run(InPlace(), torch.randn(5))
    with result.runnable.untouched():
        edit = lambda node, outputs: (outputs[0] * 10,) if node == "relu" else None  # noqa: E731
        (edited,) = result.runnable.forward(arrays(result.runnable), edit=edit)
    torch.testing.assert_close(edited, result.seen["x"][0].relu() * 10 + 1)


def test_taps_hand_over_the_inputs_in_the_order_of_the_node():
    module = Residual()
    result = run(module, torch.randn(8, 3, 9, 9))
    for node in result.graph:
        assert len(result.fed.get(node.id, ())) == len(node.inputs)
        for ref, tensor in zip(node.inputs, result.fed[node.id], strict=True):
            assert (ref is None) == (tensor is None)
            if ref is not None:
                assert tensor is result.seen[ref.node][ref.port]


def test_hooks_on_taps_see_the_gradient_that_autograd_computes():
    module = Residual()
    result = again(run(module, torch.randn(8, 3, 9, 9)))
    grads: dict[str, Tensor] = {}
    for node, (tensor, *_) in result.seen.items():
        tensor.register_hook(lambda grad, node=node: grads.__setitem__(node, grad))
    total = result.outputs[0].square().sum()
    torch.autograd.grad(total, [result.seen["x"][0]])
    torch.testing.assert_close(grads["mean"], 2 * result.outputs[0] @ module.head.weight)
    assert set(grads) == {node.id for node in result.graph}
