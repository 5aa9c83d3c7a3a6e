"""What users hand over is run as it is: methods, functions, Lightning's modules, exported programs, quantizers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradlint
from gradlint.errors import InputError, TargetError
from gradlint.frontends.torch.resolve import as_module, resolve, training

NET = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
HEAD = nn.Linear(2, 2)


class ActorCritic(nn.Module):
    """No forward; methods are what is called."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = nn.Linear(6, 3), nn.Linear(6, 1)

    def value(self, x):
        return self.critic(x)

    def build(self):
        return self.actor


class Encoder(nn.Linear):
    def encode(self, x, *, scale=2.0):
        return self(x) * scale  # its own forward, not this method again


class Lit(nn.Module):
    """As of Lightning, without the package."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class LitWithForward(Lit):
    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return {"loss": functional.mse_loss(self(batch["x"]), batch["goal"])}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 6), nn.Linear(6, 2)

    def forward(self, sequences):
        return self.head(nn.utils.rnn.pad_packed_sequence(self.rnn(sequences)[0])[0])


def specs(report):
    return {info.name: info.spec for info in report.result.inputs}


def test_a_method_is_run_on_the_module_that_it_belongs_to():
    owner = ActorCritic()
    module = resolve(owner.value).module
    assert vars(module) is vars(owner)
    assert type(module).__name__ == "ActorCritic"
    assert isinstance(module, ActorCritic)
    report = gradlint.check(owner.value)
    assert specs(report) == {"x": "float32[8,6]"}
    assert report.trainability is not None
    assert report.trainability.learning == 7
    assert resolve(owner.build).module is owner.actor  # without arguments it is a factory


def test_a_method_may_call_the_forward_of_its_module():
    encoder = Encoder(4, 3)
    x = torch.randn(2, 4)
    assert torch.equal(resolve(encoder.encode).module(x), encoder(x) * 2.0)


def test_a_module_without_a_forward_is_told_with_its_methods():
    with pytest.raises(TargetError, match=r"ActorCritic has no forward\n.*FILE.py:ActorCritic.value"):
        resolve(ActorCritic(), "net")
    with pytest.raises(TargetError, match=r"ModuleList has no forward\n.*write a function"):
        resolve(nn.ModuleList([HEAD]), "net")


def closure(net):
    return lambda x: net(x) * 2.0


@pytest.mark.parametrize(
    "function",
    [lambda x: HEAD(NET(x)), closure(NET), functools.partial(functional.linear, weight=HEAD.weight), functools.partial(NET)],
    ids=["globals", "closure", "no module", "partial"],
)
def test_functions_are_run_with_the_modules_that_they_reach(function, request):
    if request.node.callspec.id == "no module":
        with pytest.raises(TargetError, match="reaches no module"):
            as_module(function)
        return
    report = gradlint.check(function, torch.randn(8, 8))
    assert report.verdict == "healthy"
    assert report.trainability is not None
    assert report.trainability.learning > 0


def test_a_function_that_needs_arguments_and_reaches_modules_gets_inferred_inputs():
    assert specs(gradlint.check(closure(NET))) == {"x": "float32[8,8]"}


def test_a_factory_with_inputs_is_called():
    assert gradlint.check(lambda: NET, torch.randn(4, 8)).verdict == "healthy"


def test_lightning_modules_bring_their_loss_and_recipe():
    report = gradlint.check(Lit(), rehearse=3)
    assert specs(report) == {"batch.0": "float32[8,12]", "batch.1": "int64[8]<4"}
    assert report.result.recipe is not None
    assert report.result.recipe.text == "adamw lr=0.001 weight_decay=0.01"
    assert any("training_step" in note for note in report.result.notes)
    whole = gradlint.check(LitWithForward(), rehearse=3)
    assert specs(whole) == {"batch.x": "float32[8,12]", "batch.goal": "float32[8,4]"}
    assert whole.result.recipe is not None
    assert whole.result.recipe.optimizer == "sgd"
    assert specs(gradlint.check(LitWithForward(), torch.randn(3, 12))) == {"x": "float32[3,12]"}
    assert training(NET) is None


def test_a_packed_sequence_is_one_input():
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 5), torch.randn(3, 5)])
    assert specs(gradlint.check(Packed(), packed)) == {"sequences.data": "float32[7,5]"}
    assert specs(gradlint.check(Packed(), (packed,))) == {"sequences.data": "float32[7,5]"}


@pytest.mark.filterwarnings("ignore")  # torch says that nested tensors are a prototype
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_refused_with_a_way_out(layout):
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)], layout=layout)
    with pytest.raises(InputError, match=r"'input' is a nested tensor .*\n.*to_padded_tensor"):
        gradlint.check(NET, nested)


def test_an_exported_program_is_run_in_its_one_mode():
    module = torch.export.export(NET, (torch.randn(16, 8),)).module()
    assert gradlint.check(module).verdict == "healthy"
    assert gradlint.check(module, torch.randn(16, 8)).verdict == "healthy"


def test_torchscript_is_run():
    assert gradlint.check(torch.jit.trace(NET, torch.randn(2, 8))).verdict == "healthy"


@pytest.mark.filterwarnings("ignore")  # torch deprecates its own quantization
@pytest.mark.parametrize("aware", [True, False])
def test_a_model_that_is_prepared_for_quantization_is_healthy_and_handed_back(aware):
    quantization = torch.ao.quantization
    parts = (nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    module = nn.Sequential(quantization.QuantStub(), *parts, quantization.DeQuantStub()).train(aware)
    module.qconfig = (quantization.get_default_qat_qconfig if aware else quantization.get_default_qconfig)("fbgemm")
    prepared = (quantization.prepare_qat if aware else quantization.prepare)(module)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    report = gradlint.check(prepared, torch.randn(16, 8))
    assert report.verdict == "healthy"
    assert not [finding for finding in report.findings if finding.rule == "GL604"]
    after = prepared.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
