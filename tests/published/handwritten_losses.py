"""Losses and densities written by hand: a log of what reaches zero, an exp of what nothing bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.published.case import Fails, Setup, blobs, published

ADAM = {"optimizer": "adam", "lr": 1e-2}
LOG_OF_ZERO = "GL602 GL804 GL805 GL807"  # the operator; or where its infinity is seen, at the start or after some updates


def _counts(samples: int, features: int) -> Tensor:
    """Heavy-tailed positive features, as counts and amounts are."""
    return torch.randn(samples, features).mul(1.2).exp()


@published("cross-entropy-by-hand", kind="log of a probability", fails=Fails.NON_FINITE, expects=LOG_OF_ZERO)
def cross_entropy_by_hand(fixed: bool) -> Setup:
    """A class that is ruled out has the probability zero in float32, and its logarithm times zero is NaN.

    The fix computes log-softmax in one step.

    Source: Stack Overflow question 33712178, "Tensorflow NaN bug?", 2015.
    """
    x, labels = blobs(48, 16, 4)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x[::12] *= 300.0  # a few outliers drive the logits over a hundred apart

    def by_hand(logits: Tensor, target: Tensor) -> Tensor:
        return -(functional.one_hot(target, 4) * logits.softmax(-1).log()).sum(-1).mean()

    return Setup(model, x, labels, functional.cross_entropy if fixed else by_hand, ADAM)


class _Pointer(nn.Module):
    """A mixture of generating a word of the vocabulary and copying one of the source."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.generate, self.attend, self.gate, self.eps = nn.Linear(8, 10), nn.Linear(8, 6), nn.Linear(8, 1), eps

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        words = functional.pad(gate * self.generate(x).softmax(-1), (0, 5))
        copied = (1 - gate) * self.attend(x).softmax(-1)
        return (words.scatter_add(1, source, copied) + self.eps).log()


@published("pointer-to-an-unknown-word", kind="log of a probability", fails=Fails.NON_FINITE, expects=LOG_OF_ZERO)
def pointer(fixed: bool) -> Setup:
    """The target is outside the vocabulary and not in the source: generating and copying both give it the probability zero.

    The fix adds a constant before the logarithm.

    Source: abisee/pointer-generator issue 4, "Get NAN loss after 35k steps", 2017.
    """
    x, source = torch.randn(32, 8), torch.randint(0, 15, (32, 6))
    target = source[:, 0].clone()
    source[5], target[5] = 3, 14
    return Setup(_Pointer(1e-10 if fixed else 0.0), (x, source), target, functional.nll_loss, ADAM)


@published("binary-cross-entropy-by-hand", kind="log of a probability", fails=Fails.NON_FINITE, expects=LOG_OF_ZERO)
def binary_cross_entropy(fixed: bool) -> Setup:
    """Sigmoid rounds to one at logits over 17, and log(1 - 1) is minus infinity.

    The fix works on the logits.

    Source: huggingface/candle issue 2561, "binary_cross_entropy_with_logit numerically unstable for high logits", 2024;
    pytorch/pytorch issue 751, 2017.
    """
    x = 3.0 * _counts(64, 6)
    target = (x[:, 0] > x[:, 1]).float()
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))

    def by_hand(logits: Tensor, target: Tensor) -> Tensor:
        p = logits.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()

    return Setup(model, x, target, functional.binary_cross_entropy_with_logits if fixed else by_hand, ADAM)


@published("focal-loss-of-small-gamma", kind="power", fails=Fails.NON_FINITE, expects=LOG_OF_ZERO)
def focal(fixed: bool) -> Setup:
    """The focal weight (1 - p)^gamma with gamma under one has an infinite derivative where a prediction is certain.

    The fix adds eps under the power as well as under the logarithm.

    Source: kornia/kornia issue 918, "NaN gradients on backward pass with focal loss", 2021.
    """
    x = 3.0 * _counts(64, 6)
    target = (x[:, 0] > x[:, 1]).float()
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    under_power = 1e-6 if fixed else 0.0

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        p = logits.sigmoid()
        hit = target * (1 - p + under_power).sqrt() * (p + 1e-6).log()
        miss = (1 - target) * (p + under_power).pow(0.5) * (1 - p + 1e-6).log()
        return -(hit + miss).mean()

    return Setup(model, x, target, loss, ADAM)


@published("contrastive-at-low-temperature", kind="exp", fails=Fails.NON_FINITE, expects="GL602 GL603 GL804 GL805 GL807")
def low_temperature(fixed: bool) -> Setup:
    """Similarities over a temperature of 0.01 reach 100, and exp(100) is over float32's range.

    The fix takes the logarithm of the sum of exponentials in one step.

    Source: Lightning-Universe/lightning-bolts issue 811, "SimCLR nt_xent_loss: float overflow on low temperature values", 2022;
    huggingface/sentence-transformers issue 2774, 2024.
    """
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
    views = torch.randn(16, 12).repeat(2, 1) + 0.7 * torch.randn(32, 12)

    def contrast(z: Tensor, pairs: Tensor) -> Tensor:
        one, other = functional.normalize(z, dim=-1).chunk(2)
        similarity = one @ other.T / 0.01
        if fixed:
            return functional.cross_entropy(similarity, pairs)
        weights = similarity.exp()
        return -(weights.diagonal() / weights.sum(1)).log().mean()

    return Setup(model, views, torch.arange(16), contrast, {"optimizer": "adam", "lr": 1e-3})


class Autoencoder(nn.Module):
    """A variational autoencoder that exponentiates whatever its encoder gives."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.encode, self.decode, self.bound = nn.Linear(6, 4), nn.Linear(2, 6), bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, -1)
        log_variance = log_variance.clamp(-self.bound, self.bound)
        noise = torch.linspace(-1.5, 1.5, mean.numel()).view_as(mean)  # the same draw at every step
        return self.decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


@published("unbounded-log-variance", kind="exp", fails=Fails.NON_FINITE, expects="GL603 GL804 GL805 GL807")
def log_variance(fixed: bool) -> Setup:
    """A variational autoencoder of tabular data exponentiates whatever log-variance its encoder gives to an outlier.

    The fix clamps the log-variance.

    Source: pyg-team/pytorch_geometric issue 500, "Reparametrization in VGAE model can cause NAN's", 2019;
    vanderschaarlab/synthcity issue 331, "Numerical instability in VAE", 2025.
    """
    x = torch.randn(64, 6)
    x[::16] *= 250.0

    def bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        rebuilt, mean, log_variance = output
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1.0 - log_variance).sum(-1)
        return (rebuilt - target).square().sum(-1).mean() + divergence.mean()

    return Setup(Autoencoder(5.0 if fixed else math.inf), x, x, bound, ADAM)


class _MixtureDensity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@published("mixture-density-far-away", kind="log of a probability", fails=Fails.NON_FINITE, expects=LOG_OF_ZERO)
def mixture_density(fixed: bool) -> Setup:
    """A target many deviations from every component has the density zero in float32; its logarithm is minus infinity.

    The fix stays in the logarithm and sums there.

    Source: keras-team/keras issue 2586, "Mixture Density Network quickly gets to nan loss", 2016; sagelywizard/pytorch-mdn
    issue 6, "Numerical instability problem", 2020.
    """
    x = torch.linspace(-1, 1, 64)[:, None]

    def negative_log_likelihood(output: Tensor, y: Tensor) -> Tensor:
        logits, mean, log_deviation = output.chunk(3, -1)
        exponent = -0.5 * ((y - mean) / log_deviation.exp()).square()
        if fixed:
            return -torch.logsumexp(logits.log_softmax(-1) + exponent - log_deviation, -1).mean()
        return -(logits.softmax(-1) * exponent.exp() / log_deviation.exp()).sum(-1).log().mean()

    return Setup(_MixtureDensity(), x, 20.0 * x, negative_log_likelihood, ADAM)


class _SquashedPolicy(nn.Module):
    """A Gaussian squashed by tanh, and the log-density of its action."""

    def __init__(self, stable: bool) -> None:
        super().__init__()
        self.net, self.stable = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4)), stable

    def forward(self, state: Tensor) -> Tensor:
        mean, log_deviation = self.net(state).chunk(2, -1)
        log_deviation = (log_deviation + 1.5).clamp(-5.0, 2.0)
        noise = torch.linspace(-2.0, 2.0, mean.numel()).view_as(mean)
        raw = mean + log_deviation.exp() * noise
        density = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi)
        if self.stable:
            jacobian = 2.0 * (math.log(2.0) - raw - functional.softplus(-2.0 * raw))
        else:
            jacobian = (1.0 - raw.tanh().square()).log()
        return torch.cat((raw.tanh(), (density - jacobian).sum(-1, keepdim=True)), -1)


@published("squashed-policy", kind="log of a probability", fails=Fails.NON_FINITE, expects=LOG_OF_ZERO)
def squashed_policy(fixed: bool) -> Setup:
    """The log-density of a squashed action takes log(1 - tanh(x)^2), which is log 0 once tanh rounds to one, at x over 9.

    The fix writes the same logarithm with softplus.

    Source: cpnota/autonomous-learning-library issue 139, "log() outputs nan in SoftDeterministicPolicyNetwork.sample()", 2020;
    ray-project/ray issue 14878, "SAC numerical instability", 2021.
    """
    state = torch.randn(64, 4)

    def entropy_and_value(output: Tensor, wanted: Tensor) -> Tensor:
        return (output[:, :2] - wanted).square().sum(-1).mean() + 0.2 * output[:, 2].mean()

    return Setup(_SquashedPolicy(fixed), state, state[:, :2].tanh(), entropy_and_value, ADAM)
