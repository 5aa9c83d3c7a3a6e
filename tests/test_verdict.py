"""What the report says first, on models whose fault is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradlint
from gradlint.frontends.targets import Target


class Cutting(nn.Module):
    def __init__(self, cut) -> None:
        super().__init__()
        self.first, self.second, self.cut = nn.Linear(8, 8), nn.Linear(8, 4), cut

    def forward(self, x):
        return self.second(self.cut(self.first(x)))


@pytest.mark.parametrize(("cut", "verdict"), [(torch.round, "vanishes"), (torch.tanh, "healthy")])
def test_a_cut_that_nothing_gets_past_is_no_healthy_model(cut, verdict):
    report = gradlint.check(Cutting(cut), torch.randn(8, 8))
    assert report.verdict == verdict
    assert ("nothing before it can learn" in report.to("full")) is (verdict == "vanishes")


@pytest.mark.parametrize(("batch", "said"), [(4, True), (8, False)])
def test_a_batch_norm_that_sees_few_values_is_remarked(batch, said):
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for mode in ("train", "eval"):
        notes = gradlint.check(Target(module, (torch.randn(batch, 8),)), mode=mode).result.notes
        assert any("values per channel" in note for note in notes) is (said and mode == "train")


def test_a_spatial_map_counts_towards_the_values_of_a_channel():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert not gradlint.check(module, torch.randn(2, 3, 8, 8)).result.notes
