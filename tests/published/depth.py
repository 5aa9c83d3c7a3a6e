"""Depth: stacks that lose or multiply the gradient from layer to layer, and attention that saturates."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.published.case import Fails, Setup, blobs, cross_entropy, mse, published


def _stack(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers = [layer for pair in pairwise(sizes[:-1]) for layer in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def _he(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


@published("deep-sigmoid", kind="saturation", fails=Fails.STUCK, expects="GL102 GL402 GL802", steps=60)
def sigmoid(fixed: bool) -> Setup:
    """A deep network of sigmoid units stays on its plateau: every layer takes three quarters of the gradient, or more.

    The fix is ReLU with He's initialization.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010; Hochreiter,
    1991.
    """
    x, labels = blobs(64, 16, 4)
    model = _stack([16, *[48] * 8, 4], nn.ReLU if fixed else nn.Sigmoid)
    if fixed:
        _he(model)
    return Setup(model, x, labels, cross_entropy, {"optimizer": "sgd", "lr": 0.02})


@published("thirty-layers-of-default-relu", kind="initialization", fails=Fails.STUCK, expects="GL102 GL103 GL201 GL802", steps=30)
def default_init(fixed: bool) -> Setup:
    """Thirty ReLU layers keep the initialization that was made for linear or tanh units; signal and gradient vanish.

    The fix doubles the variance, as half of the units is off.

    Source: He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015, arXiv 1502.01852; SilasMarvin/dnns-from-scratch-in-zig
    pull request 7, "Use He weight initialization", 2024.
    """
    x, labels = blobs(64, 16, 4)
    model = _stack([16, *[64] * 30, 4], nn.ReLU)
    if fixed:
        _he(model)
    return Setup(model, x, labels, cross_entropy, {"optimizer": "adam", "lr": 1e-3})


class _Residual(nn.Module):
    """x + branch(x) without a norm, the branch's last layer zero where asked."""

    def __init__(self, size: int, blocks: int, *, fixup: bool) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(size, size), nn.Parameter(torch.ones(()))
        self.outer = nn.Linear(size, size, bias=False)
        nn.init.kaiming_normal_(self.inner.weight)
        nn.init.kaiming_normal_(self.outer.weight)
        if fixup:
            nn.init.zeros_(self.outer.weight)
            self.inner.weight.data *= blocks**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.outer(self.inner(x).relu())


@published("residual-without-norm", kind="residual", fails=Fails.DIVERGES, expects="GL101 GL202 GL203 GL301 GL703 GL801 GL807")
def residual(fixed: bool) -> Setup:
    """A residual network without normalization doubles its variance in every block, and the loss explodes at a usual rate.

    The fix starts the last layer of every branch at zero and scales the others down with depth.

    Source: Zhang, Dauphin and Ma, "Fixup Initialization: Residual Learning Without Normalization", 2019, arXiv 1901.09321.
    """
    blocks = 24
    x, labels = blobs(64, 32, 4)
    model = nn.Sequential(*(_Residual(32, blocks, fixup=fixed) for _ in range(blocks)), nn.Linear(32, 4))
    return Setup(model, x, labels, cross_entropy, {"optimizer": "sgd", "lr": 0.05})


class _ClippedCritic(nn.Module):
    """A critic of twelve layers; its weights are held in [-bound, bound], as weight clipping does after every step."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(48 if depth else 8, 48) for depth in range(12))
        self.head, self.bound = nn.Linear(48, 1), bound
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, self.head):
            x = functional.linear(x, layer.weight.clamp(-self.bound, self.bound), layer.bias)
            x = x if layer is self.head else x.relu()
        return x


def _critic(score: Tensor, real: Tensor) -> Tensor:
    """Hinge critic: the score of real samples over one, that of generated ones under minus one."""
    return (1.0 - real * score.squeeze(-1)).clamp(min=0).mean()


@published("clipped-critic", kind="weight clipping", fails=Fails.STUCK, expects="GL102 GL201 GL802", steps=30)
def clipped_critic(fixed: bool) -> Setup:
    """A Wasserstein critic of twelve layers has its weights clipped to 0.01: the gradient vanishes exponentially with depth.

    The fix drops the clipping (and penalizes the gradient instead).

    Source: Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, "Improved Training of Wasserstein GANs", 2017, arXiv 1704.00028.
    """
    real = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    x = torch.randn(64, 8) + real[:, None]
    return Setup(_ClippedCritic(math.inf if fixed else 0.01), x, real, _critic, {"optimizer": "rmsprop", "lr": 5e-4})


class _Lookup(nn.Module):
    """Attention reads a value by its key; `scale` divides the logits."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=256**-0.5)
        self.scale = scale

    def forward(self, wanted: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        logits = self.query(wanted) @ self.key(keys).transpose(1, 2) / self.scale
        return logits.softmax(-1) @ values


@published("attention-without-scale", kind="attention", fails=Fails.BEHIND, expects="GL404 GL802 GL806", steps=30)
def unscaled_attention(fixed: bool) -> Setup:
    """Dot products of 256 features have a deviation of 16; softmax saturates on one key and passes hardly any gradient.

    The fix divides by the root of the width.

    Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, section 3.2.1.
    """
    keys = torch.randn(16, 6, 256)
    values = torch.randn(16, 6, 4)
    chosen = torch.arange(16) % 6
    wanted = keys[torch.arange(16), chosen][:, None] + 0.1 * torch.randn(16, 1, 256)
    target = values[torch.arange(16), chosen][:, None]
    return Setup(_Lookup(16.0 if fixed else 1.0), (wanted, keys, values), target, mse, {"optimizer": "sgd", "lr": 0.5})
