"""Recipes that do not fit: steps that are too long, sums in place of means, units that die, no warm-up, half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.published.case import Fails, Setup, blobs, cross_entropy, mse, published


def _mlp(features: int, outputs: int, width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


@published("learning-rate-of-one", kind="learning rate", fails=Fails.DIVERGES, expects="GL703 GL807")
def learning_rate(fixed: bool) -> Setup:
    """The loss of a small network rises from step to step into infinity; with a rate ten times lower everything works.

    Source: Data Science Stack Exchange question 15962, "Why is learning rate causing my neural network's weights to
    skyrocket?", 2016; jax-ml/jax pull request 159, "Lower learning rate in NN example notebook to fix divergence", 2019.
    """
    x = torch.randn(64, 16)
    target = torch.stack((x[:, 0] * x[:, 1], x.sum(1)), -1)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 2))
    return Setup(model, x, target, mse, {"optimizer": "sgd", "lr": 0.1 if fixed else 1.0})


@published("adam-with-the-rate-of-sgd", kind="learning rate", fails=Fails.BEHIND, expects="GL703 GL704 GL807", steps=30)
def adam_rate(fixed: bool) -> Setup:
    """The optimizer is changed to Adam and the default learning rate of SGD, one, is kept: the perplexity never comes down.

    The fix is Adam's own default, 0.001.

    Source: OpenNMT/OpenNMT-py issue 805, "Adam seems to be broken", 2018; rajveermalviya/language-modeling issue 3, "Adam's
    learning rate", 2018.
    """
    text = (torch.arange(13)[None, :] * torch.tensor([1, 3, 5, 7])[:, None]) % 24
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(24, 32), body, nn.LayerNorm(32), nn.Linear(32, 24))
    return Setup(model, text[:, :-1], text[:, 1:], cross_entropy, {"optimizer": "adam", "lr": 1e-3 if fixed else 1.0})


def _sum_of_squares(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


@published("summed-loss", kind="loss reduction", fails=Fails.DIVERGES, expects="GL703 GL705 GL807")
def summed_loss(fixed: bool) -> Setup:
    """The loss sums over samples and outputs; the rate that suited small batches explodes on large ones.

    The fix takes the mean.

    Source: jax-ml/jax pull request 3113, "Correct notebooks for neural networks in docs", 2020; utcsilab/deepinpy issue 13,
    2020.
    """
    x = torch.randn(256, 10)
    target = x @ torch.randn(10, 8) / 10**0.5
    return Setup(_mlp(10, 8), x, target, mse if fixed else _sum_of_squares, {"optimizer": "sgd", "lr": 0.1})


@published("relu-on-the-output", kind="dead units", fails=Fails.STUCK, expects="GL403 GL802 GL806")
def relu_output(fixed: bool) -> Setup:
    """A regression ends in ReLU, as its target is positive; the output starts negative everywhere and stays zero for ever.

    The fix leaves the output linear.

    Source: ProteomicsML/ProteomicsML pull request 203, "Do not use ReLU activation for the final regression layer", 2026;
    jvargasmu/population_estimation issue 68, "Sometimes the initial solution predicts only zeros", 2021.
    """
    x = torch.rand(64, 8)
    model = _mlp(8, 1)
    nn.init.constant_(model[4].bias, -0.4)  # the unlucky draw
    return Setup(model if fixed else model.append(nn.ReLU()), x, x.mean(1, keepdim=True), mse, {"optimizer": "adam", "lr": 1e-2})


@published("born-dead", kind="dead units", fails=Fails.STUCK, expects="GL102 GL103 GL201 GL403 GL801 GL802 GL806", steps=60)
def born_dead(fixed: bool) -> Setup:
    """A deep network of ReLU layers of width two or three is dead with high probability before it is trained, and fits the mean.

    The fix is the simplest of the remedies named there: a rectifier that keeps a slope below zero.

    Source: Lu, Shin, Su and Karniadakis, "Dying ReLU and Initialization: Theory and Numerical Examples", 2019, arXiv
    1903.06733.
    """
    layers: list[nn.Module] = []
    for _ in range(10):
        layers += [nn.Linear(2 if layers else 1, 2), nn.LeakyReLU(0.3) if fixed else nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(2, 1))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    x = torch.linspace(-1.5, 1.5, 64)[:, None]
    return Setup(model, x, x.abs() - 0.75, mse, {"optimizer": "adam", "lr": 1e-2})


@published("units-killed-by-a-step", kind="dead units", fails=Fails.BEHIND, expects="GL403 GL703 GL807")
def killed_units(fixed: bool) -> Setup:
    """One long step pushes the biases so far below zero that no sample reaches a unit again; the network is constant ever after.

    The fix is a lower learning rate.

    Source: CS231n, "Neural Networks Part 1", on dying ReLU, 2015; Artificial Intelligence Stack Exchange question 39853, 2023.
    """
    x, labels = blobs(64, 8, 4, spread=0.5)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    return Setup(model, x.abs(), labels, cross_entropy, {"optimizer": "sgd", "lr": 0.1 if fixed else 30.0})


def _encoder(norm_first: bool, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(32) if norm_first else None, enable_nested_tensor=False)


def _redrawn(model: nn.Module) -> nn.Module:
    """Every layer is a draw of its own: nn.TransformerEncoder copies one."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return model


@published("post-norm-without-warm-up", kind="warm-up", fails=Fails.STUCK, expects="GL303 GL703 GL706 GL802 GL807", steps=25)
def post_norm(fixed: bool) -> Setup:
    """A deep transformer with its norms after the residual sums is trained at full rate from the first step and stays at chance.

    The fix puts the norms inside the residual branches.

    Source: Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020, arXiv 2002.04745; pytorch/pytorch
    issue 55270, "I think your transformer implementation is flawed", 2021.
    """
    text = (torch.arange(24)[:, None] + 5 * torch.arange(9)) % 24  # every word as often at every place
    head = nn.Linear(32, 24)
    model = nn.Sequential(_redrawn(nn.Sequential(nn.Embedding(24, 32), _encoder(fixed, 16))), head)
    nn.init.normal_(head.weight, std=0.02)
    return Setup(model, text[:, :-1], text[:, 1:], cross_entropy, {"optimizer": "adam", "lr": 1e-2})


class _HalfAttention(nn.Module):
    """Attention over features with a large common part, scaled before or after the product."""

    def __init__(self, scale_first: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        nn.init.constant_(self.query.bias, 36.0)
        nn.init.constant_(self.key.bias, 36.0)
        self.scale_first = scale_first

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x), self.key(x).transpose(1, 2)
        logits = (query / 8) @ key if self.scale_first else (query @ key) / 8
        return self.head((logits.softmax(-1) @ self.value(x)).mean(1))


@published("attention-logits-in-half-precision", kind="half precision", fails=Fails.NON_FINITE, expects="GL605 GL804 GL807")
def half_precision(fixed: bool) -> Setup:
    """Under mixed precision the product of queries and keys passes 65504 before it is divided, and softmax of infinity is NaN.

    The fix divides the queries first.

    Source: ultralytics/ultralytics pull request 24990, "Pre-scale attention query to prevent fp16 overflow", 2026.
    """
    x, labels = blobs(24, 64, 3)
    tokens = x[:, None, :] + 0.1 * torch.randn(24, 6, 64)
    recipe = {"optimizer": "adam", "lr": 1e-3, "precision": "fp16"}
    return Setup(_HalfAttention(fixed), tokens, labels, cross_entropy, recipe)
