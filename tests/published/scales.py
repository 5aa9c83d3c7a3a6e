"""Inputs, targets, embeddings and heads of the wrong size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.published.case import Fails, Setup, blobs, cross_entropy, mse, published


@published("raw-pixels", kind="input scale", fails=Fails.BEHIND, expects="GL601 GL703 GL807", steps=80)
def raw_pixels(fixed: bool) -> Setup:
    """Images come as numbers from 0 to 255 and the network learns nothing, or its loss becomes NaN.

    The fix divides by 255.

    Source: Cross Validated question 372762, "Why normalize when all features are on the same scale?", 2018; Stack Overflow,
    "CNN Keras converges to the same values regardless of input", answer on [0, 255].
    """
    prototypes = torch.rand(4, 1, 12, 12)
    labels = torch.arange(32) % 4
    images = (255 * (0.7 * prototypes[labels] + 0.3 * torch.rand(32, 1, 12, 12))).round()
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    return Setup(model, images / 255 if fixed else images, labels, cross_entropy, {"optimizer": "sgd", "lr": 0.1})


@published("raw-features", kind="input scale", fails=Fails.DIVERGES, expects="GL601 GL703 GL807")
def raw_features(fixed: bool) -> Setup:
    """A regression on features of unlike units, years and square feet: the loss grows from thousands to infinity in one epoch.

    The fix brings every feature to mean zero and deviation one.

    Source: Data Science Stack Exchange question 15962, "Why is learning rate causing my neural network's weights to
    skyrocket?", 2016; austineaero/Remaining-Useful-Life-RUL-Estimation issue 19, "Model loss is NaN", 2025.
    """
    standard = torch.randn(64, 5)
    raw = standard * torch.tensor([800.0, 12.0, 0.5, 3.0, 40.0]) + torch.tensor([2000.0, 1980.0, 2.0, 4.0, 300.0])
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    target = standard @ torch.tensor([0.5, 0.3, 0.1, 0.2, -0.4])
    return Setup(model, standard if fixed else raw, target, mse, {"optimizer": "sgd", "lr": 0.05})


@published("prices-as-target", kind="target scale", fails=Fails.STUCK, expects="GL107 GL601 GL703 GL704 GL807", steps=60)
def unscaled_target(fixed: bool) -> Setup:
    """House prices around 250 000 are the target; Adam creeps from zero and the error stays stupidly high.

    The fix brings the target to mean zero and deviation one.

    Source: Cross Validated question 409000, "Should we normalize target data as well as input data?", 2019.
    """
    x = torch.randn(64, 5)
    prices = 250_000 + 80_000 * (x @ torch.tensor([0.6, 0.3, -0.4, 0.2, 0.1]))
    target = (prices - prices.mean()) / prices.std() if fixed else prices
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    return Setup(model, x, target, mse, {"optimizer": "adam", "lr": 1e-2})


class _Words(nn.Module):
    """A small causal mixer over words; the head is tied to the embedding where asked."""

    def __init__(self, words: int, size: int, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(words, size), nn.LayerNorm(size), nn.Linear(size, words, bias=False)
        self.mix = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, size))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        return self.head(self.norm(h + self.mix(h)))


def _sentences(words: int) -> tuple[Tensor, Tensor]:
    text = (torch.arange(17)[None, :] * torch.tensor([1, 3, 5, 7])[:, None]) % words
    return text[:, :-1], text[:, 1:]


@published("head-of-unit-variance", kind="head scale", fails=Fails.BEHIND, expects="GL107", steps=20)
def head_scale(fixed: bool) -> Setup:
    """The head's weights have variance one, so logits have the variance of the width and the first loss is 110 instead of 11.

    The fix draws them with the variance of one over the width.

    Source: huggingface/transformers pull request 26441, "[T5] lm_head weights initialization", 2023.
    """
    model, size = _Words(40, 512, tied=False), 512
    nn.init.normal_(model.head.weight, std=size**-0.5 if fixed else 1.0)
    tokens, following = _sentences(40)
    return Setup(model, tokens, following, cross_entropy, {"optimizer": "adam", "lr": 1e-3})


@published("tied-embedding-of-unit-variance", kind="embedding scale", fails=Fails.BEHIND, expects="GL106 GL107", steps=20)
def tied_embedding(fixed: bool) -> Setup:
    """An embedding of torch's default N(0, 1) is tied to the head: every word predicts itself, with a huge logit.

    The fix draws it with deviation 0.02.

    Source: karpathy/build-nanogpt issue 18, "Embeddings are initialized with std of 0.02", 2024; pytorch/translate pull request
    220, "tranformer embedding-init fix", 2018.
    """
    model = _Words(40, 128, tied=True)
    if fixed:
        nn.init.normal_(model.embed.weight, std=0.02)
    tokens, following = _sentences(40)
    return Setup(model, tokens, following, cross_entropy, {"optimizer": "adam", "lr": 1e-3})


@published("all-weights-zero", kind="initialization", fails=Fails.STUCK, expects="GL104 GL802 GL806", steps=30)
def zero_weights(fixed: bool) -> Setup:
    """All weights start at zero: every hidden unit is the same, and none of them receives a gradient.

    The fix draws them at random.

    Source: wagonhelm/NaNmnist issue 2, "Highly improper way of weight initialization", 2018, citing CS231n, "Neural networks
    part 2".
    """
    x, labels = blobs(48, 12, 4)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    if not fixed:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return Setup(model, x, labels, cross_entropy, {"optimizer": "sgd", "lr": 0.1})
