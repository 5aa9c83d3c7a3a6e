"""Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlint.onnx_torch.registry import Context, op


def _complex(x: Tensor) -> Tensor:
    """The complex signal whose parts are on the last axis; a last axis of one holds the real part alone."""
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


@op("STFT")
def _stft(
    x: Tensor, frame_step: Tensor, window: Tensor | None = None, frame_length: Tensor | None = None, *, onesided: int = 1
) -> Tensor:
    natural = x.shape[1] if window is None else window.shape[0]
    length = natural if frame_length is None else int(frame_length)
    frames = _complex(x if x.dim() == 3 else x.unsqueeze(-1)).unfold(1, length, int(frame_step))
    spectrum = torch.fft.fft(frames if window is None else frames * window, dim=-1)
    return torch.view_as_real(spectrum[..., : length // 2 + 1] if onesided else spectrum)
