"""Small models that break at a point, each with and without its guard, on the patterns of the studies of numerical bugs.

GRIST (Yan et al. 2021), DEBAR (Zhang et al. 2020) and RANUM (Li et al. 2023) sort such bugs by operator: log, exp, sqrt, norm,
division, power, hand-written softmax and cross-entropy, variance by subtraction, arc functions, log-variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """Functions of a weight layer's output of shape (batch, 8); `operator` is the one in `broken` that is to be named."""

    name: str
    operator: str
    broken: Function
    guarded: Function
    rule: str = "GL602"


class Model(nn.Module):
    def __init__(self, function: Function, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=bias)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


# fmt: off
PAIRS = (
    Pair(
        "log of sigmoid", "log",
        lambda h: h.sigmoid().log(),
        lambda h: F.logsigmoid(h),  # noqa: PLW0108 - a line of its own, as the others
    ),
    Pair(
        "log of sigmoid, eps", "log",
        lambda h: torch.log(torch.sigmoid(h)),
        lambda h: torch.log(torch.sigmoid(h) + 1e-7),
    ),
    Pair(
        "log of softmax", "log",
        lambda h: h.softmax(-1).log(),
        lambda h: h.log_softmax(-1),
    ),
    Pair(
        "log of softmax, clamp", "log",
        lambda h: torch.log(torch.softmax(h, -1)),
        lambda h: torch.log(torch.softmax(h, -1).clamp(min=1e-8)),
    ),
    Pair(
        "log of 1 - p", "log",
        lambda h: (1 - h.sigmoid()).log(),
        lambda h: (1 - h.sigmoid() + 1e-6).log(),
    ),
    Pair(
        "an eps that float32 drops", "log",
        lambda h: (1 + 1e-9 - h.sigmoid()).log(),
        lambda h: (1 + 1e-5 - h.sigmoid()).log(),
    ),
    Pair(
        "an eps on the wrong side", "log",
        lambda h: (1 - (h.sigmoid() + 1e-9)).log(),
        lambda h: (1 - h.sigmoid().clamp(max=1 - 1e-6)).log(),
    ),
    Pair(
        "entropy", "log2",
        lambda h: -(h.softmax(-1) * h.softmax(-1).log2()).sum(-1),
        lambda h: -(h.softmax(-1) * (h.softmax(-1) + 1e-12).log2()).sum(-1),
    ),
    Pair(
        "log of a rectified signal", "log",
        lambda h: h.relu().log(),
        lambda h: h.relu().log1p(),
    ),
    Pair(
        "log of a weight layer", "log",
        lambda h: h.log(),
        lambda h: torch.where(h > 0, h, 1.0).log(),
    ),
    Pair(
        "log1p of what may be -1", "log1p",
        lambda h: torch.log1p(-h.tanh().square()),
        lambda h: torch.log1p(-0.999 * h.tanh().square()),
    ),
    Pair(
        "log of softplus", "log",
        lambda h: F.softplus(h).log(),
        lambda h: (F.softplus(h) + 1e-6).log(),
    ),
    Pair(
        "logit of sigmoid", "logit",
        lambda h: torch.logit(h.sigmoid()),
        lambda h: torch.logit(h.sigmoid(), eps=1e-6),
    ),
    Pair(
        "where behind the log", "log",
        lambda h: torch.where(h > 0, h.log(), torch.zeros_like(h)),
        lambda h: torch.where(h > 0, h.clamp(min=1e-6).log(), torch.zeros_like(h)),
    ),
    Pair(
        "log hidden by nan_to_num", "log",
        lambda h: torch.nan_to_num(h.sigmoid().log()),
        lambda h: torch.maximum(h, torch.tensor(1e-6)).log(),
    ),
    Pair(
        "division by a weight layer", "division",
        lambda h: h / h.roll(1, -1),
        lambda h: h / (h.roll(1, -1).abs() + 1e-3),
    ),
    Pair(
        "division by a rectified sum", "division",
        lambda h: h.relu() / h.relu().sum(-1, keepdim=True),
        lambda h: h.relu() / h.relu().sum(-1, keepdim=True).clamp(min=1e-9),
    ),
    Pair(
        "division by a signed sum", "division",
        lambda h: h / h.sum(-1, keepdim=True),
        lambda h: h / (1 + h.square().sum(-1, keepdim=True)),
    ),
    Pair(
        "division by a deviation", "division",
        lambda h: h / h.relu().std(-1, keepdim=True),
        lambda h: h / (h.relu().std(-1, keepdim=True) + 1e-5),
    ),
    Pair(
        "division by the norm of a difference", "division",
        lambda h: (h - h.flip(0)) / (h - h.flip(0)).norm(dim=-1, keepdim=True),
        lambda h: F.normalize(h - h.flip(0), dim=-1),
    ),
    Pair(
        "division by scores of few", "division",
        lambda h: h / h.sigmoid().topk(2).values.sum(-1, keepdim=True),
        lambda h: h / h.softmax(-1).topk(2).values.sum(-1, keepdim=True),
    ),
    Pair(
        "mean over a mask", "division",
        lambda h: (h * (h > 0)).sum(-1) / (h > 0).float().sum(-1),
        lambda h: (h * (h > 0)).sum(-1) / (h > 0).float().sum(-1).clamp(min=1),
    ),
    Pair(
        "Dice overlap", "division",
        lambda h: 2 * (h.sigmoid() * h.sigmoid()).sum() / (h.sigmoid().sum() + h.sigmoid().sum()),
        lambda h: (2 * (h.sigmoid() * h.sigmoid()).sum() + 1) / (h.sigmoid().sum() + h.sigmoid().sum() + 1),
    ),
    Pair(
        "reciprocal", "1/x",
        lambda h: h.relu().reciprocal(),
        lambda h: (h.relu() + 1e-4).reciprocal(),
    ),
    Pair(
        "rsqrt", "rsqrt",
        lambda h: h * h.relu().square().mean(-1, keepdim=True).rsqrt(),
        lambda h: h * (h.relu().square().mean(-1, keepdim=True) + 1e-6).rsqrt(),
    ),
    Pair(
        "root of a probability", "sqrt",
        lambda h: h.sigmoid().sqrt(),
        lambda h: (h.sigmoid() + 1e-8).sqrt(),
    ),
    Pair(
        "root of a bounded signal", "sqrt",
        lambda h: h.clamp(min=0).sqrt(),
        lambda h: h.relu().sqrt(),
    ),
    Pair(
        "distance by hand", "sqrt",
        lambda h: (h - h.flip(0)).square().sum(-1).sqrt(),
        lambda h: torch.linalg.vector_norm(h - h.flip(0), dim=-1),
    ),
    Pair(
        "distance matrix by hand", "sqrt",
        lambda h: (h[:, None] - h[None]).pow(2).sum(-1).sqrt(),
        lambda h: torch.cdist(h, h),
    ),
    Pair(
        "variance by subtraction", "sqrt",
        lambda h: (h.square().mean(-1) - h.mean(-1).square()).sqrt(),
        lambda h: (h.square().mean(-1) - h.mean(-1).square()).relu().sqrt(),
    ),
    Pair(
        "variance by subtraction, bounded", "sqrt",
        lambda h: ((h**2).mean(-1) - h.mean(-1) ** 2).clamp(min=0).sqrt(),
        lambda h: ((h**2).mean(-1) - h.mean(-1) ** 2).clamp(min=1e-6).sqrt(),
    ),
    Pair(
        "broken power", "x**0.5",
        lambda h: h.abs() ** 0.5,
        lambda h: (h.abs() + 1e-6) ** 0.5,
    ),
    Pair(
        "negative power", "x**-1",
        lambda h: h.relu() ** -1,
        lambda h: (1 + h.relu()) ** -1,
    ),
    Pair(
        "broken power of a sign", "x**1.5",
        lambda h: h.pow(1.5),
        lambda h: h.abs().pow(1.5),
    ),
    Pair(
        "focal weight", "x**0.5",
        lambda h: (1 - h.sigmoid()) ** 0.5,
        lambda h: (1 - h.sigmoid()) ** 2.0,
    ),
    Pair(
        "angle of a cosine", "acos",
        lambda h: F.cosine_similarity(h, h.flip(0)).acos(),
        lambda h: F.cosine_similarity(h, h.flip(0)).clamp(-1 + 1e-6, 1 - 1e-6).acos(),
    ),
    Pair(
        "angle, clamped at its edge", "acos",
        lambda h: (F.normalize(h, dim=-1) * F.normalize(h.flip(0), dim=-1)).sum(-1).clamp(-1, 1).acos(),
        lambda h: (0.999 * (F.normalize(h, dim=-1) * F.normalize(h.flip(0), dim=-1)).sum(-1)).acos(),
    ),
    Pair(
        "inverse of a squashing", "atanh",
        lambda h: h.tanh().atanh(),
        lambda h: (0.99 * h.tanh()).atanh(),
    ),
    Pair(
        "arcsine", "asin",
        lambda h: h.asin(),
        lambda h: (0.5 * h.sin()).asin(),
    ),
    Pair(
        "unbiased deviation of one", "unbiased std of one element",
        lambda h: h[:, :1].std(-1),
        lambda h: h[:, :1].std(-1, unbiased=False),
    ),
    Pair(
        "softmax by hand", "exp",
        lambda h: h.exp() / h.exp().sum(-1, keepdim=True),
        lambda h: (h - h.amax(-1, keepdim=True)).exp() / (h - h.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True),
        "GL603",
    ),
    Pair(
        "log-sum-exp by hand", "exp",
        lambda h: h.exp().sum(-1).log(),
        lambda h: (h - h.amax(-1, keepdim=True)).exp().sum(-1).log() + h.amax(-1),
        "GL603",
    ),
    Pair(
        "log-variance", "exp",
        lambda h: torch.randn_like(h) * (0.5 * h).exp(),
        lambda h: torch.randn_like(h) * (0.5 * h.clamp(-10, 10)).exp(),
        "GL603",
    ),
    Pair(
        "precision of a Gaussian", "exp",
        lambda h: h.detach().square() * (-h).exp() + h,
        lambda h: h.detach().square() * (-F.softplus(h)).exp() + h,
        "GL603",
    ),
    Pair(
        "softplus by hand", "exp",
        lambda h: (1 + h.exp()).log(),
        lambda h: (1 + (-h.abs()).exp()).log() + h.relu(),
        "GL603",
    ),
    Pair(
        "sigmoid by hand", "exp",
        lambda h: 1 / (1 + torch.exp(-h)),
        lambda h: 1 / (1 + torch.exp(-h.clamp(-60, 60))),
        "GL603",
    ),
    Pair(
        "contrast at low temperature", "exp",
        lambda h: (F.normalize(h, dim=-1) @ F.normalize(h, dim=-1).T / 0.01).exp(),
        lambda h: (F.normalize(h, dim=-1) @ F.normalize(h, dim=-1).T / 0.05).exp(),
        "GL603",
    ),
    Pair(
        "radial kernel", "exp",
        lambda h: h.square().exp(),
        lambda h: (-h.square()).exp(),
        "GL603",
    ),
    Pair(
        "untaken branch", "exp",
        lambda h: torch.where(h <= 0, h.exp() - 1, h),
        lambda h: torch.where(h <= 0, h.clamp(max=0).exp() - 1, h),
        "GL603",
    ),
    Pair(
        "power with a signal as exponent", "10**x",
        lambda h: 10**h,
        lambda h: 10 ** h.tanh(),
        "GL603",
    ),
)
# fmt: on
