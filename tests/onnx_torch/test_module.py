"""OnnxModule against the torch modules that were exported, and its contract."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gradlint.errors import ForwardError, GradlintError, InputError
from gradlint.frontends.base import PartialRun
from gradlint.onnx_torch import OnnxModule
from tests.models.exports import by_dynamo


class Recurrent(nn.Module):
    """A recurrent layer, read at the last step."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Block(nn.Module):
    """Pre-norm attention and perceptron, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.RMSNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Residual(nn.Module):
    """A stem and two residual blocks with BatchNorm, one of which halves the image, as in ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.first, self.second = self.branch(8, 8, 1), self.branch(8, 12, 2)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def branch(self, before, after, stride):
        return nn.Sequential(
            *(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
            *(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)),
        )

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = torch.relu(self.shortcut(x) + self.second(x))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Scaled dot-product attention of a sequence on itself, causal, with rotated queries."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        parts = self.project(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Words(nn.Module):
    """Token and position embeddings under a tied head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.norm(x) @ self.tokens.weight.T


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=4)),
        *(nn.GroupNorm(2, 8), nn.SiLU(), nn.MaxPool2d(2, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), nn.LeakyReLU()),
        *(nn.Upsample(scale_factor=2), nn.AvgPool2d(3, 2, 1), nn.InstanceNorm2d(4, affine=True), nn.Sigmoid()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def perceptron(*between):
    return nn.Sequential(nn.Linear(8, 16), *between, nn.Linear(16, 4))


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 2, enable_nested_tensor=False)


MODULES = {
    "perceptron": (lambda: perceptron(nn.Tanh()), (2, 8)),
    "gelu": (lambda: perceptron(nn.GELU(), nn.Linear(16, 16), nn.GELU(approximate="tanh")), (2, 8)),
    "silu": (lambda: perceptron(nn.SiLU(), nn.Linear(16, 16), nn.Mish(), nn.Softplus()), (2, 8)),
    "softmax": (lambda: perceptron(nn.Softmax(-1)), (2, 8)),
    "convolutional": (convolutional, (2, 3, 16, 16)),
    "conv_transpose": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 6, 3, 2, 1, 1), nn.ELU(), nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2), nn.PReLU(4)
        ),
        (2, 3, 5, 5),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 6, 5, dilation=2, padding=4), nn.Hardswish(), nn.Conv1d(6, 2, 3)), (2, 3, 20)),
    "resnet": (Residual, (2, 3, 8, 8)),
    "batch_norm": (lambda: perceptron(nn.BatchNorm1d(16), nn.ReLU()), (4, 8)),
    "layer_norm": (lambda: perceptron(nn.LayerNorm(16)), (2, 8)),
    "rms_norm": (lambda: perceptron(nn.RMSNorm(16)), (2, 8)),
    "group_norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU()), (2, 3, 6, 6)),
    "instance_norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.InstanceNorm2d(4, affine=True)), (2, 3, 6, 6)),
    "attention": (Attention, (2, 5, 12)),
    "transformer": (Block, (2, 5, 16)),
    "encoder": (encoder, (2, 5, 16)),
    "words": (Words, (2, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM(6, 5, num_layers=2, batch_first=True)), (2, 7, 6)),
    "bidirectional": (lambda: Recurrent(nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)), (2, 7, 6)),
    "gru": (lambda: Recurrent(nn.GRU(6, 5, batch_first=True)), (2, 7, 6)),
    "rnn": (lambda: Recurrent(nn.RNN(6, 5, batch_first=True)), (2, 7, 6)),
}


def example(name, shape):
    return torch.randint(20, shape) if name == "words" else torch.randn(shape)


def exported(module, x, **options):
    """The ONNX file of a module, with random weights and normalization statistics instead of zeros and ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand_like(buffer))
    return by_dynamo(module, (x,), optimize=False, **options)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.fixture(params=[(name, opset) for name in MODULES for opset in (18, 23)], ids=lambda p: f"{p[0]}-{p[1]}")
def pair(request):
    name, opset = request.param
    build, shape = MODULES[name]
    module, x = build(), example(name, shape)
    ours = OnnxModule(exported(module, x, opset_version=opset))
    return module.double(), ours.double(), x.double() if x.is_floating_point() else x


def test_outputs_and_gradients_are_those_of_the_exported_module(pair):
    module, ours, x = pair
    x = x.requires_grad_(x.is_floating_point())
    expected, (got,) = module(x), ours(x)
    assert relative(got, expected) < 1e-5
    cotangent = torch.randn_like(expected)
    theirs = dict(module.named_parameters())
    mine = dict(ours.named_parameters())
    shared = [name for name in mine if name in theirs]
    assert len(shared) > 0.6 * len(theirs)  # constant folding renames some
    inputs = [x] * x.requires_grad
    want = torch.autograd.grad(expected, [*inputs, *(theirs[name] for name in shared)], cotangent)
    have = torch.autograd.grad(got, [*inputs, *(mine[name] for name in shared)], cotangent)
    assert max(map(relative, have, want)) < 1e-5


def one_node(op, inputs, *, attributes=None, constants=None, outputs=("y",), opset=20, shape=(2, 3), domain=""):
    """A model of one operator on float inputs of `shape`."""
    graph = helper.make_graph(
        [helper.make_node(op, [*inputs, *(constants or {})], list(outputs), "the_node", domain=domain, **(attributes or {}))],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_only_weights_by_role_are_parameters_and_names_are_those_of_the_file():
    nodes = [
        helper.make_node("MatMul", ["x", "/blocks.0/fc.weight"], ["a"]),
        helper.make_node("Pow", ["a", "exponent"], ["b"]),
        helper.make_node("LayerNormalization", ["b", "norm.scale"], ["y"]),
    ]
    value = np.ones((3, 3), np.float32)
    held = {"/blocks.0/fc.weight": value, "exponent": np.float32(2) * value[0], "norm.scale": value[0]}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [2, 3])], [helper.make_tensor_value_info("y", 1, [2, 3])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    module = OnnxModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert {name for name, _ in module.named_parameters()} == {"/blocks.0/fc.weight", "norm.scale"}
    assert {name for name, _ in module.named_buffers()} == {"exponent"}
    (module(torch.randn(2, 3) - 5)[0]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def linear_file(tmp_path, dtype=np.float32):
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", kind, [2, 64])],
        [helper.make_tensor_value_info("y", kind, [2, 64])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx", weight


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_keeps_its_dtype(tmp_path, dtype):
    path, weight = linear_file(tmp_path, dtype)
    module = OnnxModule(path)
    x = np.ones((2, 64), dtype)
    (y,) = module(x)
    assert y.dtype == dict(module.named_parameters())["w"].dtype == torch.from_numpy(weight).dtype
    np.testing.assert_allclose(y.detach().numpy(), x @ weight, rtol=2e-2 if dtype == np.float16 else 1e-5, atol=1e-2)


def test_training_the_module_works_and_leaves_the_file_alone(tmp_path):
    path, _ = linear_file(tmp_path)
    before = path.read_bytes()
    module = OnnxModule(path)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = module(torch.ones(2, 64))[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert path.read_bytes() == before


def test_state_dict_copies_and_dtype_changes_work_as_for_any_module(tmp_path):
    module = OnnxModule(linear_file(tmp_path)[0])
    x = torch.randn(2, 64)
    twin = copy.deepcopy(module).double()
    assert torch.allclose(twin(x.double())[0].float(), module(x)[0], atol=1e-4)
    state = {name: value * 2 for name, value in module.state_dict().items()}
    expected = module(x)[0] * 2
    module.load_state_dict(state)
    assert torch.allclose(module(x)[0], expected, atol=1e-5)


def test_inputs_are_taken_by_position_and_by_name():
    module = OnnxModule(one_node("Sub", ["a", "b"]))
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    for (out,) in (module(a, b), module(b=b, a=a), module(a, b=b)):
        assert torch.equal(out, a)


@pytest.mark.parametrize(("args", "named"), [((), {}), ((1, 2, 3), {}), ((1, 2), {"c": 3})])
def test_inputs_that_do_not_fit_are_refused_with_the_names_of_the_inputs(args, named):
    with pytest.raises(InputError, match="a, b"):
        OnnxModule(one_node("Sub", ["a", "b"]))(*args, **named)


def test_a_failing_operator_is_named_with_its_place():
    with pytest.raises(ForwardError, match=r"Add at the_node .*\[2, 3\], \[5\]"):
        OnnxModule(one_node("Add", ["x"], constants={"c": np.ones(5, np.float32)}))(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("op", "domain", "attributes"),
    [("Nonsense", "", {}), ("QAttention", "com.microsoft", {}), ("Relu", "my.domain", {}), ("Relu", "", {"slope": 0.1})],
)
def test_an_operator_that_cannot_be_run_stops_the_run_there(op, domain, attributes):
    module = OnnxModule(one_node(op, ["x"], attributes=attributes, domain=domain))
    with pytest.raises(PartialRun) as stop:
        module(torch.ones(2, 3))
    assert (stop.value.node, stop.value.op) == ("the_node", op)


def test_a_domain_of_its_own_is_served_by_the_functions_of_the_file():
    model = one_node("Twice", ["x"], attributes={"by": 3.0}, domain="my.domain")
    body = [helper.make_node("Constant", [], ["k"]), helper.make_node("Mul", ["a", "k"], ["b"])]
    body[0].attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="by", type=onnx.AttributeProto.FLOAT))
    model.functions.append(helper.make_function("my.domain", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)], ["by"]))
    assert torch.equal(OnnxModule(model)(torch.ones(2, 3))[0], torch.full((2, 3), 3.0))


@pytest.mark.parametrize(
    ("op", "constants"),
    [
        ("Expand", {"shape": np.array([1 << 20, 1 << 20, 2, 3])}),
        ("Tile", {"repeats": np.array([1 << 20, 1 << 20])}),
        ("Resize", {"roi": np.zeros(0, np.float32), "scales": np.array([1e6, 1e6], np.float32)}),
        ("Pad", {"pads": np.array([0, 0, 1 << 20, 1 << 20])}),
    ],
)
def test_a_size_beyond_the_budget_is_refused_before_it_is_allocated(op, constants):
    with pytest.raises(GradlintError, match="elements"):
        OnnxModule(one_node(op, ["x"], constants=constants))(torch.ones(2, 3))


def test_a_loop_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("gradlint.onnx_torch.control.MAX_TRIPS", 50)
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Neg", ["v"], ["v_out"])], "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, []),
         helper.make_tensor_value_info("v", 1, None)],
        [helper.make_tensor_value_info("c_out", 9, []), helper.make_tensor_value_info("v_out", 1, None)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)], "g", [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("y", 1, [2, 3])], [numpy_helper.from_array(np.int64(1 << 62), "trips")],
    )  # fmt: skip
    with pytest.raises(ForwardError, match="trips"):
        OnnxModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))(torch.ones(2, 3))


def batch_norm(**attributes):
    values = {"scale": [1, 2], "bias": [0, 1], "mean": [9, 9], "var": [4, 4]}
    held = {name: np.array(value, np.float32) for name, value in values.items()}
    outputs = ("y", "new_mean", "new_var") if attributes else ("y",)
    return one_node("BatchNormalization", ["x"], attributes=attributes, constants=held, outputs=outputs, shape=(8, 2))


@pytest.fixture
def layer():
    """The layer that `batch_norm` describes."""
    layer = nn.BatchNorm1d(2, momentum=0.1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0]))
    layer.running_mean.fill_(9.0)
    layer.running_var.fill_(4.0)
    return layer


def test_batch_norm_takes_its_frozen_statistics_by_default(layer):
    x = torch.randn(8, 2) * 3 + 1
    assert torch.allclose(OnnxModule(batch_norm())(x)[0], layer.eval()(x), atol=1e-5)


def test_batch_norm_in_training_mode_takes_and_returns_the_statistics_of_the_batch(layer):
    x = torch.randn(8, 2) * 3 + 1
    y, mean, var = OnnxModule(batch_norm(training_mode=1))(x)
    assert torch.allclose(y, layer(x), atol=1e-5)
    assert torch.allclose(mean, layer.running_mean, atol=1e-5)
    assert torch.allclose(var, 0.9 * 4 + 0.1 * x.var(0, correction=0), atol=1e-5)  # ONNX takes the biased variance


def test_dropout_drops_only_when_the_file_says_so():
    x = torch.ones(100, 100)
    constants = {"ratio": np.float32(0.25), "training": np.array(True)}
    dropped = OnnxModule(one_node("Dropout", ["x"], constants=constants, shape=(100, 100)))(x)[0]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    kept = OnnxModule(one_node("Dropout", ["x"], constants=constants | {"training": np.array(False)}, shape=(100, 100)))
    assert torch.equal(kept(x)[0], x)
