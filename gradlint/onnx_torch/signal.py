"""Fourier transforms and the mel filter bank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlint.onnx_torch.dtypes import torch_dtype
from gradlint.onnx_torch.registry import Context, budget, op


def _complex(x: Tensor) -> Tensor:
    """Convert a tensor whose last axis holds real and imaginary part, or only the real part, to a complex tensor."""
    if x.shape[-1] == 1:
        return torch.complex(x.squeeze(-1), torch.zeros_like(x.squeeze(-1)))
    return torch.view_as_complex(x.contiguous())


@op("DFT")
def _dft(
    ctx: Context,
    x: Tensor,
    length_input: Tensor | None = None,
    axis_input: Tensor | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    if ctx.opset >= 20:
        axis = -2 if axis_input is None else int(axis_input)
    axis %= x.dim()
    length = None if length_input is None else int(length_input)
    signal = _complex(x)
    if inverse and onesided:
        return torch.unsqueeze(torch.fft.irfft(signal, length, axis), -1)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(signal, length, axis))
    spectrum = torch.fft.fft(signal, length, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
    return torch.view_as_real(spectrum)


@op("MelWeightMatrix")
def _mel_weight_matrix(
    bins: Tensor, length: Tensor, rate: Tensor, lowest: Tensor, highest: Tensor, *, output_datatype: int = 1
) -> Tensor:
    """Return triangular filters over the bins of a spectrum, equally spaced on the mel scale 2595 log10(1 + f / 700)."""
    count, size = int(bins), int(length)
    budget([size // 2 + 1, count])
    low, high = (2595 * math.log10(1 + float(f.detach()) / 700) for f in (lowest, highest))
    mel = low + torch.arange(count + 2, dtype=torch.float64) * (high - low) / (count + 2)
    edges = ((size + 1) * 700 * (10 ** (mel / 2595) - 1) / int(rate)).floor()
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    place = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(center > left, (place - left) / (center - left).clamp(min=1), (place == center).double())
    falling = (right - place) / (right - center).clamp(min=1)
    return torch.where(place <= center, rising, falling).clamp(min=0.0).to(torch_dtype(output_datatype))


@op("STFT")
def _stft(
    x: Tensor, frame_step: Tensor, window: Tensor | None = None, frame_length: Tensor | None = None, *, onesided: int = 1
) -> Tensor:
    natural = x.shape[1] if window is None else window.shape[0]
    length = natural if frame_length is None else int(frame_length)
    frames = _complex(x if x.dim() == 3 else x.unsqueeze(-1)).unfold(1, length, int(frame_step))
    spectrum = torch.fft.fft(frames if window is None else frames * window, dim=-1)
    return torch.view_as_real(spectrum[..., : length // 2 + 1] if onesided else spectrum)
