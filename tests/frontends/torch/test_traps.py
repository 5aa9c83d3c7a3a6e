"""Models whose code hides what they do; each graph must still tell it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradlint.frontends.torch import trace
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.graph import Ref
from tests.models.torch_samples import again, arrays, check_sound, run, sources


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_region_is_in_the_graph_and_passes_gradient(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.outer(checkpoint(lambda t: self.inner(t).relu(), x, use_reentrant=reentrant))

    module = Checkpointed()
    result = run(module, torch.randn(8, 4))
    assert [node.id for node in result.graph] == ["x", "inner:linear", "relu", "outer:linear"]
    assert [bool(node.notes & {"checkpoint"}) for node in result.graph] == [False, True, True, False]
    assert result.seen["relu"][0].requires_grad
    check_sound(result, module)


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_edit_inside_a_checkpoint_holds_in_the_backward_pass(reentrant):
    class Checkpointed(nn.Module):
        def forward(self, x):
            return checkpoint(lambda t: (t * 1.0).square(), x, use_reentrant=reentrant)

    runnable = run(Checkpointed(), torch.ones(3)).runnable
    with runnable.untouched():
        leaf = {}
        edit = lambda node, outputs: (outputs[0] * 5,) if node == "mul" else None  # noqa: E731
        (out,) = runnable.forward(arrays(runnable), lambda node, outputs, _: leaf.setdefault(node, outputs[0]), edit)
        (grad,) = torch.autograd.grad(out.sum(), [leaf["x"]])
    torch.testing.assert_close(grad, torch.full((3,), 50.0))


def test_vmap_is_seen_through():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return torch.vmap(lambda row: torch.tanh(row @ self.w))(x).sum(-1)

    module = Mapped()
    result = run(module, torch.randn(8, 4))
    assert [node.op for node in result.graph] == ["input", "linear", "tanh", "sum"]
    assert result.node("tanh").shape == (8, 3)
    check_sound(result, module)


def test_a_cell_in_a_loop_is_unrolled_with_call_indices():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            h = c = x.new_zeros(x.shape[0], 5)
            for step in range(3):
                h, c = self.cell(x[:, step], (h, c))
            return self.head(h)

    module = Loop()
    result = run(module, torch.randn(8, 3, 4))
    cells = result.nodes("lstm_cell")
    assert [node.call for node in cells] == [0, 1, 2]
    assert cells[0].inputs[1:] == (None, None)
    assert cells[2].inputs == (Ref("slice:2"), Ref(cells[1].id, 0), Ref(cells[1].id, 1))
    assert cells[0].weights["recurrent"].name == "cell.weight_hh"
    check_sound(result, module)


def test_a_packed_sequence_is_one_recurrence_over_axis_0():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 5, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [5, 5, 3], batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]

    module = Packed()
    result = run(module, torch.randn(3, 5, 4))
    node = result.node("gru")
    assert node.attrs.items() >= {"packed": True, "time_axis": 0, "batch_first": False}.items()
    assert node.weights["recurrent"].name == "rnn.weight_hh_l0"
    check_sound(result, module)


def test_writes_through_views_reach_the_base():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            x = self.linear(x)
            x.neg_()
            column = x[:, 0]
            column.add_(1)
            return x * 2

    module = Views()
    result = run(module, torch.randn(8, 4))
    assert sources(result.node("mul")) == ["slice:1", None]
    assert sources(result.graph["slice:1"]) == ["neg", "add"]
    assert sources(result.node("add")) == ["slice", None]
    assert {node.id for node in result.graph if "inplace" in node.notes} == {"neg", "add", "slice:1"}
    check_sound(result, module)


def test_hooks_see_what_is_before_an_operator_that_writes_a_view():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))

        def forward(self, x):
            return self.net(x)

    module = Hidden()
    runnable = run(module, torch.randn(2, 3, 4)).runnable  # three dimensions: what linear returns is a view
    fired = []
    with runnable.untouched():
        (out,) = runnable.forward(
            arrays(runnable), lambda node, outputs, _: outputs[0].register_hook(lambda _grad, node=node: fired.append(node))
        )
        out.sum().backward()
    assert fired[::-1] == [node.id for node in runnable.graph] == ["x", "net.0:linear", "net.1:relu", "net.2:linear"]


def test_a_preallocated_buffer_that_is_filled_in_a_loop_carries_the_signal():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            out = torch.zeros(8, 2, 4)
            for step in range(2):
                out[:, step] = self.linear(x[:, step])
            flat = out.view(8, 8)
            flat[:, :4].mul_(0.5)
            return out.sum(1)

    module = Filled()
    result = run(module, torch.randn(8, 2, 4))
    first, second = (node for node in result.graph if node.attrs.get("name") == "setitem")
    assert sources(first)[0] is None
    assert sources(second)[0] == first.id
    check_sound(result, module)


def test_overwriting_with_zeros_cuts_the_edge():
    class Masked(nn.Module):
        def forward(self, x):
            y = x * 2
            y.zero_()
            z = x * 3
            z[:, 0].zero_()
            return y + z + torch.zeros_like(x)

    result = run(Masked(), torch.randn(4, 3))
    first, _ = result.nodes("add")
    assert first.inputs[0] is None
    assert sources(result.graph[sources(first)[1]]) == ["mul:1", None]


def test_detached_and_gradless_regions_are_noted():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                blind = self.a(x)
            with torch.inference_mode():
                blinder = torch.tanh(x)
            return self.b(x) + blind + self.b(x).detach() + self.b(x).data + blinder.clone()

    result = run(Cut(), torch.randn(2, 4))
    assert result.graph["a:linear"].notes == {"no-grad"}
    assert result.node("tanh").notes == {"no-grad"}
    assert len(result.nodes("detach")) == 2
    assert again(result).order == [node.id for node in result.graph]


@pytest.mark.filterwarnings("ignore")
def test_compiled_modules_run_as_plain_python():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    inner = torch.compile(nn.Linear(4, 4), backend=backend)
    module = torch.compile(nn.Sequential(inner, nn.Tanh()), backend=backend)
    result = run(module, torch.randn(2, 4))
    assert [node.id for node in result.graph] == ["input", "0:linear", "1:tanh"]
    assert result.graph["0:linear"].weights["weight"].name == "0.weight"
    assert calls == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(2, 4))], ids=["script", "trace"])
def test_operators_inside_torchscript_are_found_with_their_weights(make):
    module = nn.Sequential(nn.Linear(4, 4), make(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))))
    result = run(module, torch.randn(2, 4))
    assert [node.op for node in result.graph] == ["input", "linear", "linear", "relu", "linear"]
    assert [node.weights["weight"].name for node in result.nodes("linear")] == ["0.weight", "1.0.weight", "1.2.weight"]
    assert [node.weights["weight"].fan_in for node in result.nodes("linear")] == [4, 4, 8]
    assert result.runnable.capture == "full"
    assert result.seen["1:relu"][0].requires_grad
    check_sound(result, module)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_function_deep_in_the_code_is_noticed_by_what_it_makes():
    @torch.jit.script
    def gate(x):
        return torch.tanh(x) * 2

    class Gated(nn.Module):
        def forward(self, x):
            return gate(x) + x

    result = run(Gated(), torch.randn(3))
    assert [node.op for node in result.graph] == ["input", "tanh", "mul", "add"]
    assert sources(result.node("add")) == ["mul", "x"]


def test_a_module_that_lies_wholly_inside_torch_is_captured_without_a_source():
    module = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    result = run(module)
    assert result.graph.inputs == ("src", "tgt")
    assert len(result.nodes("multi_head_attention")) == 3
    assert {node.source for node in result.graph} == {None}
    check_sound(result, module)


def test_a_forward_hook_that_changes_the_output_is_seen_with_its_line():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].register_forward_hook(lambda _module, _args, out: out * 3)
    result = run(module, torch.randn(2, 4))
    assert sources(result.graph["1:linear"])[0] == "mul"
    assert result.node("mul").source.file.endswith("test_traps.py")


def test_data_dependent_control_flow_records_the_path_taken():
    class Branch(nn.Module):
        def forward(self, x):
            while x.abs().max() > 1:
                x = x / 2
            return x.sin() if x.sum() > 0 else x.cos()

    result = run(Branch(), torch.tensor([3.0, 1.0]))
    assert [node.id for node in result.graph if node.op in {"div", "sin"}] == ["div", "div:1", "sin"]


def test_what_is_kept_from_an_earlier_call_is_a_constant():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.state = None

        def forward(self, x):
            out = x if self.state is None else x + self.state
            self.state = out.detach() * 2
            return out * 1.0

    module = Stateful()
    result = run(module, torch.randn(3))
    assert module.state is None
    assert again(result).order == [node.id for node in result.graph]


def test_a_lazy_model_is_initialized_on_a_copy():
    module = nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(), nn.ReLU())
    result = run(module, torch.randn(2, 5, 9))
    assert result.node("conv").weights["weight"].shape == (4, 5, 3)
    assert nn.parameter.is_lazy(module[0].weight)
    assert any("lazy" in note for note in result.runnable.notes)


def test_setting_requires_grad_on_an_input_is_allowed():
    class Asks(nn.Module):
        def forward(self, x):
            x.requires_grad = True
            return x * 2

    assert run(Asks(), torch.randn(2)).runnable.capture == "full"


@pytest.mark.parametrize("broken", ["FunctionTracer", "GapTracer"])
def test_a_failing_tracer_falls_back_and_says_so(monkeypatch, broken):
    class Fails(getattr(trace, broken)):
        def __init__(self, recorder):
            raise RuntimeError("cannot watch")

    monkeypatch.setattr(trace, broken, Fails)
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    result = run(module, torch.randn(2, 4))
    assert result.runnable.capture == ("modules" if broken == "FunctionTracer" else "full")
    assert [node.op for node in result.graph] == ["input", "linear", "tanh", "linear"]
    assert result.graph["2:linear"].weights["weight"].name == "2.weight"
    assert bool(result.runnable.notes) == (broken == "FunctionTracer")
    check_sound(result, module)


def test_a_model_whose_operators_escape_still_has_its_modules(monkeypatch):
    monkeypatch.setattr(trace, "function_name", lambda _func: 1 / 0)
    module = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Flatten(), nn.LSTM(12, 2))
    result = run(module, torch.randn(2, 2, 4))
    assert result.runnable.capture == "modules"
    assert [node.op for node in result.graph] == ["input", "conv", "batch_norm", "reshape", "lstm"]
    assert result.node("batch_norm").weights["scale"].name == "1.weight"


def test_two_runs_with_dropout_have_the_same_ids_and_other_masks():
    result = run(nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5)), torch.randn(2, 4))
    with result.runnable.untouched():
        first, second = (result.runnable.forward(arrays(result.runnable))[0] for _ in range(2))
    assert not torch.equal(first, second)
    with result.runnable.untouched():
        torch.testing.assert_close(result.runnable.forward(arrays(result.runnable))[0], first)


def test_functional_in_place_and_out_arguments_are_followed():
    class Functional(nn.Module):
        def forward(self, x):
            y = x * 1.0
            F.relu(y, inplace=True)
            out = torch.empty(0)
            with torch.no_grad():
                torch.add(y.detach(), 1.0, out=out)
            return y * out

    result = run(Functional(), torch.randn(3))
    assert sources(result.graph["mul:1"]) == ["relu", "add"]


def test_the_graph_is_not_there_before_the_first_forward():
    runnable = TorchRunnable(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="first forward"):
        _ = runnable.graph
