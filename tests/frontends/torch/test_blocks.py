"""Models that are too large for the memory: their blocks are drawn when they are needed, and the report is that of the whole."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import gradlint
from gradlint import load
from gradlint.errors import TargetError
from gradlint.frontends.torch.blocks import Blocks
from gradlint.frontends.torch.meta import bytes_of, materialized

SIDE = 48


class Layer(nn.Module):
    """A layer of a decoder, whose projections start smaller, as those of GPT-2 do."""

    def __init__(self):
        super().__init__()
        self.before, self.behind = nn.LayerNorm(SIDE), nn.LayerNorm(SIDE)
        self.attention = nn.MultiheadAttention(SIDE, 4, batch_first=True)
        self.up, self.down = nn.Linear(SIDE, 4 * SIDE), nn.Linear(4 * SIDE, SIDE)

    def forward(self, x):
        normed = self.before(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(self.behind(x))))


class GPT(nn.Module):
    """A decoder with tied embeddings."""

    def __init__(self, depth=5):
        super().__init__()
        self.embedding = nn.Embedding(90, SIDE)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.head = nn.Linear(SIDE, 90, bias=False)
        self.head.weight = self.embedding.weight

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, Layer):
            nn.init.normal_(module.down.weight, std=0.02 / (2 * len(self.layers)) ** 0.5)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Stack(nn.Module):
    """Layers whose gains are too large, behind a BatchNorm, which has buffers."""

    def __init__(self, gain=5.0, depth=10):
        super().__init__()
        self.gain = gain
        self.layers = nn.ModuleList(nn.Linear(SIDE, SIDE) for _ in range(depth))
        self.norm = nn.BatchNorm1d(SIDE)
        self.head = nn.Linear(SIDE, 3)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.gain * SIDE**-0.5)

    def forward(self, x):
        x = self.norm(x)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def llama():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": SIDE, "intermediate_size": 3 * SIDE, "num_hidden_layers": 5, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=90, num_key_value_heads=4, **sizes))


IDS = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))
BATCH = torch.randn(8, SIDE, generator=torch.Generator().manual_seed(0))
MODELS = {"gpt": (GPT, IDS), "llama": (llama, IDS), "stack": (Stack, BATCH)}


@pytest.fixture
def memory(monkeypatch):
    """A function that sets how many bytes of memory there are for the weights of a model."""
    return lambda size: monkeypatch.setattr(load, "available", lambda: 4 * size)


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("name", MODELS)
def test_the_report_by_blocks_is_that_of_the_whole(memory, name):
    build, batch = MODELS[name]
    module = on_meta(build)
    whole = gradlint.check(module, (batch,), seeds=2, materialize=True).result
    memory(bytes_of(module) // 3)
    parts = gradlint.check(module, (batch,), seeds=2, materialize=True).result
    assert any("were drawn one by one" in note for note in parts.notes)
    assert not any("were drawn one by one" in note for note in whole.notes)
    assert parts.verdict == whole.verdict
    assert parts.growth.decades == pytest.approx(whole.growth.decades, abs=0.05)
    assert [point.place for point in parts.spine] == [point.place for point in whole.spine]
    for one, other in zip(parts.spine, whole.spine, strict=True):
        assert one.backward == pytest.approx(other.backward, abs=0.05)
        assert one.forward == pytest.approx(other.forward, abs=0.05)
        assert one.predicted_backward == pytest.approx(other.predicted_backward, abs=0.05)
    assert parts.weights.levels == pytest.approx(whole.weights.levels, abs=0.05)
    assert parts.weights.output == pytest.approx(whole.weights.output, abs=0.05)
    found = [[(finding.rule, finding.module) for finding in report.findings] for report in (parts, whole)]
    assert found[0] == found[1]
    assert all(tensor.is_meta for tensor in module.parameters())
    if name == "stack":
        assert parts.verdict == "explodes"
        assert any(finding.module.startswith("layers.") for finding in parts.findings)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_the_whole_each_time_and_take_no_more_than_the_room(name):
    build, batch = MODELS[name]
    whole = materialized(on_meta(build), "whole")
    room = bytes_of(whole) // 3
    blocks = Blocks(on_meta(build), "parts", room)
    assert blocks.count > 3
    most = 0
    for _ in range(2):
        for key, tensor in whole.named_parameters():
            assert torch.equal(blocks.values(blocks.module.get_parameter(key)), tensor), key
            most = max(most, sum(part.untyped_storage().nbytes() for part in blocks.module.parameters()))
    assert most <= room
    whole.eval()
    with blocks, torch.no_grad():
        returned = blocks.module.eval()(batch)
        assert torch.equal(getattr(returned, "logits", returned), getattr(whole(batch), "logits", whole(batch)))


def test_the_scheme_of_the_model_counts_also_for_theory():
    """`_init_weights` draws smaller weights than `reset_parameters` of each layer."""
    quiet, loud = (
        gradlint.check(on_meta(functools.partial(Stack, gain=gain)), (BATCH,), probe=False).growth.decades for gain in (1.4, 3.0)
    )
    assert quiet < 1.0 < loud
    whole = materialized(on_meta(GPT), "gpt")
    assert float(whole.layers[2].up.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(whole.layers[2].down.weight.detach().std()) == pytest.approx(0.02 / 10**0.5, rel=0.1)
    assert whole.head.weight is whole.embedding.weight


class AllAtOnce(Stack):
    """A model whose own method initializes the weights of all layers."""

    _init_weights = None

    def init_weights(self):
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.1)


def test_what_is_initialized_all_at_once_is_not_divided(memory):
    whole = materialized(on_meta(AllAtOnce), "whole")
    assert float(whole.layers[3].weight.detach().std()) == pytest.approx(0.1, rel=0.1)
    memory(bytes_of(whole) // 3)
    with pytest.raises(TargetError, match="initializes the layers within it all at once"):
        gradlint.check(on_meta(AllAtOnce), (BATCH,), materialize=True)


class Forgotten(Stack):
    """A model with a tensor that nothing initializes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(SIDE))

    def forward(self, x):
        return super().forward(x * self.scale)


@pytest.mark.parametrize("share", [1, 3])
def test_a_weight_that_nothing_initializes_is_named(memory, share):
    memory(bytes_of(on_meta(Forgotten)) // share)
    with pytest.raises(TargetError, match=r"nothing initializes .*\(Forgotten\)"):
        gradlint.check(on_meta(Forgotten), (BATCH,), materialize=True)


class Raising(Stack):
    def _init_weights(self, module):
        raise OverflowError("no such scale")


def test_a_scheme_that_raises_is_an_error_of_the_target():
    with pytest.raises(TargetError, match=r"Raising\._init_weights of .* raised OverflowError"):
        gradlint.check(on_meta(Raising), (BATCH,), materialize=True)


def test_a_write_to_weights_by_the_forward_does_not_last(memory):
    """Random states are left alone as well: dropout draws the same in the whole and by blocks."""
    module = on_meta(lambda: nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(SIDE, SIDE), nn.Dropout(0.5)))))
    whole = gradlint.check(module, (BATCH,), seeds=1, materialize=True)
    memory(bytes_of(module) // 2)
    parts = gradlint.check(module, (BATCH,), seeds=1, materialize=True)
    assert parts.growth.decades == pytest.approx(whole.growth.decades, abs=1e-3)
