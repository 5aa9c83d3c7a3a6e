"""Standard architectures written by hand, small, each at the initialization that its paper or torchvision gives it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def he_init(model: nn.Module, linear: float = 0.01) -> nn.Module:
    """He-normal convolutions by fan-out, zero biases, N(0, linear) linear layers: torchvision's VGG, ResNet and MobileNet."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, linear)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def conv_norm(inside: int, out: int, size: int, stride: int = 1, *, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, with `act`, ReLU."""
    conv = nn.Conv2d(inside, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([nn.ReLU(inplace=True)] if act else []))


class Add(nn.Module):
    """`after(body(x) + skip(x))`."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip, self.after = body, skip or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return self.after(self.body(x) + self.skip(x))


def vgg16(*, norm: bool) -> nn.Module:
    """VGG-16 (Simonyan 2014) with torchvision's head at a tenth of its width."""
    layers: list[nn.Module] = []
    inside = 3
    for stage in VGG_16:
        for width in stage:
            layers += [nn.Conv2d(inside, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]
            inside = width
        layers.append(nn.MaxPool2d(2))
    head = mlp(4 * 512, 409, 409, 100, act=lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Dropout()))
    # N(0, 0.01) at 4096 inputs; the same gain at a tenth of them
    return he_init(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head), linear=0.01 * 10**0.5)


def resnet(depths: Sequence[int], *, bottleneck: bool, width: int = 16) -> nn.Module:
    """ResNet (He 2016) at a quarter of its width, He-normal convolutions and torch's default head."""
    inside = width
    layers: list[nn.Module] = [conv_norm(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        out = 4 * inner if bottleneck else inner
        for block in range(depth):
            stride = 2 if stage and not block else 1
            if bottleneck:
                body = [conv_norm(inside, inner, 1), conv_norm(inner, inner, 3, stride), conv_norm(inner, out, 1, act=False)]
            else:
                body = [conv_norm(inside, out, 3, stride), conv_norm(out, out, 3, act=False)]
            skip = None if inside == out and stride == 1 else conv_norm(inside, out, 1, stride, act=False)
            layers.append(Add(nn.Sequential(*body), skip, nn.ReLU(inplace=True)))
            inside = out
    return nn.Sequential(he_init(nn.Sequential(*layers)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 100))


class Concat(nn.Module):
    """`cat(x, body(x))`, the layer of a dense block."""

    def __init__(self, inside: int, rate: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, 4 * rate, 1, bias=False),
            nn.BatchNorm2d(4 * rate), nn.ReLU(), nn.Conv2d(4 * rate, rate, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    """DenseNet (Huang 2017): three blocks of six layers, growth rate 12."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, padding=1, bias=False)]
    width = 24
    for _ in range(3):
        for _ in range(6):
            layers.append(Concat(width, 12))
            width += 12
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
        width //= 2
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return he_init(nn.Sequential(*layers))


def mobilenet() -> nn.Module:
    """MobileNet v1 (Howard 2017) at a quarter of its width."""
    layers: list[nn.Module] = [conv_norm(3, 8, 3, 2)]
    inside = 8
    for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1)):
        layers += [conv_norm(inside, inside, 3, stride, groups=inside), conv_norm(inside, out, 1)]
        inside = out
    return he_init(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10)))


class UNet(nn.Module):
    """U-Net (Ronneberger 2015) with three levels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(nn.Sequential(conv_norm(a, b, 3), conv_norm(b, b, 3)) for a, b in pairs)
        self.bottom = nn.Sequential(conv_norm(64, 128, 3), conv_norm(128, 128, 3))
        self.raised = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths))
        self.up = nn.ModuleList(nn.Sequential(conv_norm(2 * w, w, 3), conv_norm(w, w, 3)) for w in reversed(widths))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 3, h, w) to (batch, 2, h, w)."""
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for raised, level in zip(self.raised, self.up, strict=True):
            x = level(torch.cat([raised(x), kept.pop()], 1))
        return self.head(x)


class Recurrent(nn.Module):
    """A recurrence over embedded tokens or features, read at every step or at the last."""

    def __init__(self, rnn: nn.RNNBase, out: int, *, vocabulary: int = 0, last: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, rnn.input_size) if vocabulary else nn.Identity()
        self.rnn, self.last = rnn, last
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), out)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps[, features]) to (batch, [steps,] out)."""
        states, _ = self.rnn(self.embed(x))
        return self.head(states[:, -1] if self.last else states)


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers at torch's default initialization with an activation between them."""
    layers: list[nn.Module] = []
    for inside, out in itertools.pairwise(widths):
        layers += [nn.Linear(inside, out), act()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


class VAE(nn.Module):
    """Variational autoencoder (Kingma 2014) of flat images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 200), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(200, 20), nn.Linear(200, 20)
        self.decoder = mlp(20, 200, 784, last=nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (batch, 784) to the image, the mean and the log variance."""
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        return self.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)), mean, log_variance


def dcgan(*, generator: bool) -> nn.Module:
    """DCGAN (Radford 2015) for 32 pixels: N(0, 0.02) weights, BatchNorm scales N(1, 0.02)."""
    layers: list[nn.Module] = []
    if generator:
        widths = (64, 128, 64, 32)
        for index, (inside, out) in enumerate(itertools.pairwise(widths)):
            conv = nn.ConvTranspose2d(inside, out, 4, 2 if index else 1, 1 if index else 0, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(32, 3, 4, 2, 1, bias=False), nn.Tanh()]
    else:
        layers += [nn.Conv2d(3, 32, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for inside, out in ((32, 64), (64, 128)):
            layers += [nn.Conv2d(inside, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(128, 1, 4, bias=False), nn.Sigmoid()]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return nn.Sequential(*layers)


class PointNet(nn.Module):
    """PointNet (Qi 2017) without its transforms: shared layers, maximum over the points, a head."""

    def __init__(self) -> None:
        super().__init__()
        shared: list[nn.Module] = []
        for inside, out in ((3, 64), (64, 64), (64, 128), (128, 256)):
            shared += [nn.Conv1d(inside, out, 1), nn.BatchNorm1d(out), nn.ReLU()]
        self.shared = nn.Sequential(*shared)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 3, points) to (batch, 10) log-probabilities."""
        return torch.log_softmax(self.head(self.shared(x).max(2).values), 1)


class Causal(nn.Module):
    """A dilated convolution padded on the left alone."""

    def __init__(self, inside: int, out: int, size: int, dilation: int = 1) -> None:
        super().__init__()
        self.pad, self.conv = (size - 1) * dilation, nn.Conv1d(inside, out, size, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inside, steps) to (batch, out, steps)."""
        return self.conv(nn.functional.pad(x, (self.pad, 0)))


def tcn() -> nn.Module:
    """Temporal convolutional network (Bai 2018): six levels, weight norm, N(0, 0.01) weights."""
    layers: list[nn.Module] = []
    for level in range(6):
        body: list[nn.Module] = []
        for inside in (1 if level == 0 else 25, 25):
            causal = Causal(inside, 25, 7, 2**level)
            nn.init.normal_(causal.conv.weight, 0.0, 0.01)
            causal.conv = nn.utils.parametrizations.weight_norm(causal.conv)
            body += [causal, nn.ReLU(), nn.Dropout(0.1)]
        layers.append(Add(nn.Sequential(*body), nn.Conv1d(1, 25, 1) if level == 0 else None, nn.ReLU()))
    return nn.Sequential(*layers, nn.Conv1d(25, 10, 1))


class WaveNet(nn.Module):
    """WaveNet (van den Oord 2016): gated dilated convolutions with residual and skip paths."""

    def __init__(self, layers: int = 10, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList(Causal(width, width, 2, 2 ** (i % 5)) for i in range(layers))
        self.gates = nn.ModuleList(Causal(width, width, 2, 2 ** (i % 5)) for i in range(layers))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 256, 1))

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, steps) to (batch, 256, steps)."""
        x, total = self.first(x), torch.zeros(())
        for taps, gate, residual, skip in zip(self.filters, self.gates, self.residuals, self.skips, strict=True):
            z = torch.tanh(taps(x)) * torch.sigmoid(gate(x))
            x, total = x + residual(z), total + skip(z)
        return self.head(total)


class Siamese(nn.Module):
    """Two images through one encoder; the distance of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_norm(1, 16, 3, 2), conv_norm(16, 32, 3, 2), nn.Flatten(), nn.Linear(32 * 49, 64))
        self.head = nn.Linear(64, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """From two (batch, 1, 28, 28) to (batch, 1)."""
        return self.head(torch.abs(self.encoder(a) - self.encoder(b)))


class Transposed(nn.Module):
    """A module over the last axis but one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Shape in, shape out."""
        return self.body(x.transpose(1, 2)).transpose(1, 2)


def mlp_mixer(width: int = 64, tokens: int = 16, layers: int = 6) -> nn.Module:
    """MLP-Mixer (Tolstikhin 2021) for 32 pixels in patches of 8."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        across = Transposed(mlp(tokens, 32, tokens, act=nn.GELU))
        blocks += [Add(nn.Sequential(nn.LayerNorm(width), across))]
        blocks += [Add(nn.Sequential(nn.LayerNorm(width), mlp(width, 256, width, act=nn.GELU)))]
    patches = [nn.Conv2d(3, width, 8, 8), nn.Flatten(2), Transpose()]
    return nn.Sequential(
        *patches, *blocks, nn.LayerNorm(width), Transpose(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 10)
    )


class Transpose(nn.Module):
    """Channels and positions change places."""

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, a, b) to (batch, b, a)."""
        return x.transpose(1, 2)


class Highway(nn.Module):
    """Highway network (Srivastava 2015): ten layers of width 64, gate biases of -2."""

    def __init__(self, layers: int = 10, width: int = 64) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(20, width), nn.Linear(width, 10)
        self.bodies = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 20) to (batch, 10)."""
        x = self.first(x)
        for body, gate in zip(self.bodies, self.gates, strict=True):
            carry = torch.sigmoid(gate(x))
            x = carry * torch.relu(body(x)) + (1 - carry) * x
        return self.head(x)


def lenet() -> nn.Module:
    """LeNet-5 (LeCun 1998) with tanh."""
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), mlp(400, 120, 84, 10, act=nn.Tanh))


PLAIN: dict[str, tuple[Callable[[], nn.Module], Any]] = {  # model and inputs where they cannot be inferred
    "vgg16": (lambda: vgg16(norm=False), None),
    "vgg16-bn": (lambda: vgg16(norm=True), None),
    "resnet18": (lambda: resnet((2, 2, 2, 2), bottleneck=False), None),
    "resnet50": (lambda: resnet((3, 4, 6, 3), bottleneck=True), None),
    "densenet": (densenet, None),
    "mobilenet": (mobilenet, None),
    "lenet": (lenet, None),
    "unet": (UNet, None),
    "lstm-language-model": (lambda: Recurrent(nn.LSTM(64, 128, 2, batch_first=True), 200, vocabulary=200), None),
    "gru-classifier": (
        lambda: Recurrent(nn.GRU(64, 64, batch_first=True, bidirectional=True), 5, vocabulary=200, last=True),
        None,
    ),
    "tanh-rnn": (lambda: Recurrent(nn.RNN(16, 64, 2, batch_first=True), 5, last=True), None),
    "mlp": (lambda: mlp(64, 128, 128, 128, 10), None),
    "autoencoder": (lambda: mlp(784, 256, 64, 16, 64, 256, 784, last=nn.Sigmoid()), None),
    "vae": (VAE, None),
    "dcgan-generator": (lambda: dcgan(generator=True), torch.randn(8, 64, 1, 1)),
    "dcgan-discriminator": (lambda: dcgan(generator=False), None),
    "pointnet": (PointNet, None),
    "nn-transformer": (lambda: nn.Transformer(64, 4, 3, 3, 128, batch_first=True), None),
    "tcn": (tcn, None),
    "wavenet": (WaveNet, None),
    "siamese": (Siamese, None),
    "mlp-mixer": (mlp_mixer, None),
    "highway": (Highway, None),
}
