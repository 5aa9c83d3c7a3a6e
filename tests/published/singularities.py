"""Gradients that end at a point: a root, a norm, an angle or a quotient at its singular argument, inside the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.published.case import Fails, Setup, blobs, cross_entropy, mse, published

ADAM = {"optimizer": "adam", "lr": 1e-2}
SINGULAR = "GL602 GL805"  # the operator, or the gradient that ends there


def _embedder(features: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, size))


class _Siamese(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.embed, self.eps = _embedder(8, 4), eps

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.sqrt((self.embed(left) - self.embed(right)).square().sum(1) + self.eps)


def _contrastive(distance: Tensor, same: Tensor) -> Tensor:
    return (same * distance.square() + (1 - same) * (1 - distance).clamp(min=0).square()).mean()


@published("siamese-identical-pair", kind="distance", fails=Fails.NON_FINITE, expects=SINGULAR)
def siamese(fixed: bool) -> Setup:
    """A Siamese network sees two equal inputs; the Euclidean distance is zero, where the root has an infinite derivative.

    The fix adds a constant under the root.

    Source: keras-team/keras issue 9097, "NaN loss when using euclidean distance for siamese network (due to K.sqrt)", 2018.
    """
    left = torch.randn(32, 8)
    same = (torch.arange(32) % 2).float()
    noise = torch.where(torch.arange(32)[:, None] < 4, 0.0, 1.0) * torch.randn(32, 8)
    right = torch.where(same[:, None] > 0, left + 0.3 * noise, torch.randn(32, 8))
    right[1], same[1] = left[1], 1.0
    return Setup(_Siamese(1e-2 if fixed else 0.0), (left, right), same, _contrastive, ADAM)


class _Triplet(nn.Module):
    def __init__(self, primitive: bool) -> None:
        super().__init__()
        self.embed, self.primitive = _embedder(8, 4), primitive

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        anchor, positive, negative = self.embed(anchor), self.embed(positive), self.embed(negative)
        return torch.stack((self._distance(anchor, positive), self._distance(anchor, negative)))

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        if self.primitive:
            return torch.linalg.vector_norm(one - other, dim=1)
        return (one - other).square().sum(1).sqrt()


def _hinge(distances: Tensor, margin: Tensor) -> Tensor:
    return (distances[0] - distances[1] + margin).clamp(min=0).mean()


@published("triplet-coincident-embeddings", kind="distance", fails=Fails.NON_FINITE, expects=SINGULAR)
def triplet(fixed: bool) -> Setup:
    """Anchor and positive are the same text: their distance is zero and its gradient NaN, even where the hinge is inactive.

    The fix takes the norm primitive, whose derivative at zero is zero.

    Source: huggingface/sentence-transformers pull request 4033, "Keep Euclidean similarity gradients finite at zero distance",
    2026.
    """
    anchor, negative = torch.randn(24, 8), torch.randn(24, 8)
    positive = anchor + 0.2 * torch.randn(24, 8)
    positive[::6] = anchor[::6]
    return Setup(_Triplet(fixed), (anchor, positive, negative), torch.tensor(1.0), _hinge, ADAM)


class _UnitVectors(nn.Module):
    def __init__(self, guard_first: bool) -> None:
        super().__init__()
        self.embed, self.head, self.guard_first = nn.Linear(8, 6, bias=False), nn.Linear(6, 3), guard_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.guard_first:
            return self.head(h / h.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt())
        return self.head(h * h.square().sum(-1, keepdim=True).rsqrt().clamp(max=1e12))


@published("unit-vector-of-padding", kind="norm", fails=Fails.NON_FINITE, expects=SINGULAR)
def unit_vector(fixed: bool) -> Setup:
    """Rows of padding are zero; the reciprocal root is infinite there, and bounding it afterwards leaves its derivative infinite.

    The fix bounds the sum of squares before the root.

    Source: keras-team/keras issue 23075, "ops.normalize(order=2) yields NaN gradients for zero vectors on the torch backend",
    2026.
    """
    x, labels = blobs(30, 8, 3)
    x[::10] = 0.0
    return Setup(_UnitVectors(fixed), x, labels, cross_entropy, ADAM)


class _StatisticsPooling(nn.Module):
    """Mean and deviation over time, as speaker embeddings pool them."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.frame, self.head, self.eps = nn.Linear(5, 16), nn.Linear(32, 3), eps

    def forward(self, x: Tensor) -> Tensor:
        h = self.frame(x).relu()
        deviation = (h.var(1) + self.eps).sqrt()
        return self.head(torch.cat((h.mean(1), deviation), 1))


@published("deviation-of-silence", kind="deviation", fails=Fails.NON_FINITE, expects=SINGULAR)
def deviation(fixed: bool) -> Setup:
    """The deviation is written as the root of a variance, and a silent recording has the variance zero.

    The fix adds a constant to the variance.

    Source: keras-team/keras issue 2960, "K.std results in NaN if input is zero vector", 2016; the same of torch.std:
    pytorch/pytorch issue 4320, 2017.
    """
    centers, labels = blobs(18, 5, 3)
    x = centers[:, None, :] + torch.randn(18, 12, 5)
    x[0] = 0.0
    return Setup(_StatisticsPooling(1e-5 if fixed else 0.0), x, labels, cross_entropy, ADAM)


class _GroupRelative(nn.Module):
    """Scores of the answers to one prompt, relative to their group."""

    def __init__(self, unbiased: bool) -> None:
        super().__init__()
        self.score, self.unbiased = _embedder(6, 1), unbiased

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(x).squeeze(-1)
        deviation = torch.sqrt(scores.var(1, keepdim=True, unbiased=self.unbiased) + 1e-6)
        return scores + (scores - scores.mean(1, keepdim=True)) / deviation


@published("deviation-of-one-element", kind="deviation", fails=Fails.NON_FINITE, expects="GL602 GL804 GL805")
def deviation_of_one(fixed: bool) -> Setup:
    """A group of one element has no unbiased deviation: torch divides zero by zero.

    The fix takes the biased estimate, which is zero.

    Source: pytorch/pytorch issue 29372, "torch.std() returns nan for single item tensors", 2019.
    """
    x = torch.randn(16, 1, 6)
    return Setup(_GroupRelative(unbiased=not fixed), x, x.sum(-1), mse, ADAM)


class _PowerPooling(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.conv, self.head, self.eps = nn.Conv2d(1, 8, 3, bias=False), nn.Linear(8, 2), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x).pow(2).mean((2, 3)) + self.eps).pow(1 / 2))


@published("power-pooling-of-nothing", kind="power", fails=Fails.NON_FINITE, expects=SINGULAR)
def power_pooling(fixed: bool) -> Setup:
    """Power pooling raises a sum of powers to 1/p; where all inputs are zero that has no derivative.

    The fix adds eps before the root is taken.

    Source: pytorch/pytorch issue 6765, "LP Pooling stability issues", 2018.
    """
    labels = torch.arange(16) % 2
    x = torch.randn(16, 1, 8, 8) + labels[:, None, None, None]
    x[3] = 0.0
    return Setup(_PowerPooling(1e-6 if fixed else 0.0), x, labels, cross_entropy, ADAM)


class _Angle(nn.Module):
    def __init__(self, rim: float) -> None:
        super().__init__()
        self.direction, self.rim = _embedder(5, 3), rim

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        one = nn.functional.normalize(self.direction(x), dim=-1)
        other = nn.functional.normalize(self.direction(reference), dim=-1)
        return (one * other).sum(-1).clamp(-self.rim, self.rim).acos()


@published("angle-between-equals", kind="angle", fails=Fails.NON_FINITE, expects=SINGULAR)
def angle(fixed: bool) -> Setup:
    """An angular loss clamps the cosine to [-1, 1]; equal directions have the cosine 1, where arccos has an infinite derivative.

    The fix clamps strictly inside.

    Source: geoopt/geoopt pull request 79, "fix NaN gradients in Sphere", 2019; papagina/RotationContinuity issue 11, 2022.
    """
    x = torch.randn(48, 5)
    reference = torch.randn(48, 5)
    reference[::3] = x[::3]
    wanted = torch.where(torch.arange(48) % 3 == 0, 0.0, torch.pi / 2)
    return Setup(_Angle(1.0 - 1e-4 if fixed else 1.0), (x, reference), wanted, mse, ADAM)


class _HandWrittenElu(nn.Module):
    def __init__(self, guarded: bool) -> None:
        super().__init__()
        self.first, self.second, self.guarded = nn.Linear(4, 16), nn.Linear(16, 1), guarded

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) * 60.0  # a sharpness that brings single units over exp's range
        low = h.clamp(max=0.0) if self.guarded else h
        return self.second(torch.where(h <= 0.0, torch.exp(low) - 1.0, h) / 60.0).squeeze(-1)


@published("where-hides-an-overflow", kind="untaken branch", fails=Fails.NON_FINITE, expects="GL602 GL603 GL805")
def untaken_branch(fixed: bool) -> Setup:
    """`where` picks the linear branch and drops exp(h), which overflowed; its gradient is zero times infinity.

    The fix bounds the argument before exp as well.

    Source: pytorch/pytorch issue 68425, "torch.where produces nan in backward pass for differentiable forward pass", 2021.
    """
    x = torch.randn(64, 4)
    return Setup(_HandWrittenElu(fixed), x, x[:, 0], mse, ADAM)


class _PointCloud(nn.Module):
    """Moves points and pools a kernel of their distances, each to itself included."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.move, self.head, self.eps = nn.Linear(3, 3), nn.Linear(6, 1), eps

    def forward(self, points: Tensor) -> Tensor:
        moved = self.move(points)
        distance = ((moved[:, :, None] - moved[:, None]).square().sum(-1) + self.eps).sqrt()
        return self.head(torch.exp(-distance).mean(1)).squeeze(-1)


@published("distance-to-oneself", kind="distance", fails=Fails.NON_FINITE, expects=SINGULAR)
def distance_matrix(fixed: bool) -> Setup:
    """A matrix of interatomic distances holds every atom's distance to itself, zero, under a root.

    The fix adds a stability constant under the root.

    Source: atomistic-machine-learning/schnetpack pull requests 6, "Fixed numerical instability for 0 distances", 2018, and 739,
    2025.
    """
    points = torch.randn(32, 6, 3)
    return Setup(_PointCloud(1e-6 if fixed else 0.0), points, points.std((1, 2)), mse, ADAM)


class _HandWrittenNorm(nn.Module):
    def __init__(self, centered: bool) -> None:
        super().__init__()
        self.head, self.centered = nn.Linear(6, 1), centered

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        if self.centered:
            return self.head((x - mean) / ((x - mean).square().mean(0) + 1e-6).sqrt()).squeeze(-1)
        variance = x.square().mean(0) - mean.square()
        return self.head((x - mean) / variance.sqrt()).squeeze(-1)


@published("variance-by-subtraction", kind="cancellation", fails=Fails.NON_FINITE, expects="GL602 GL804 GL805")
def subtraction(fixed: bool) -> Setup:
    """The mean of squares less the square of the mean: under a large mean it cancels below zero, and its root is NaN.

    The fix averages the squares of centered values.

    Source: tensorflow/tensorflow issue 3290, "I think tf.nn.moments() produces negative variance", 2016; google/objax issue
    182, "Improve BatchNorm numerical stability", 2020.
    """
    signal = torch.randn(64, 6)
    return Setup(_HandWrittenNorm(fixed), 1000.0 + 0.01 * signal, signal[:, 0], mse, ADAM)


class _MaskedAttention(nn.Module):
    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.qkv, self.head, self.hidden = nn.Linear(8, 24), nn.Linear(8, 1), hidden

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        logits = query @ key.transpose(1, 2) / 8**0.5
        weights = logits.masked_fill(padding[:, None, :], self.hidden).softmax(-1)
        return self.head((weights @ value).masked_fill(padding[:, :, None], 0.0).mean(1)).squeeze(-1)


@published("softmax-of-all-padding", kind="mask", fails=Fails.NON_FINITE, expects="GL602 GL804 GL805")
def all_padding(fixed: bool) -> Setup:
    """A sequence of padding alone is masked with minus infinity; softmax divides zero by zero, and a mask after it is late.

    The fix masks with a large finite number.

    Source: pytorch/pytorch issue 41508, "nn.MultiheadAttention causes gradients to become NaN under some use cases", 2020.
    """
    x = torch.randn(16, 5, 8)
    padding = torch.zeros(16, 5, dtype=torch.bool)
    padding[:, 4], padding[7] = True, True
    return Setup(_MaskedAttention(-1e4 if fixed else -torch.inf), (x, padding), x[:, 0, 0], mse, ADAM)
