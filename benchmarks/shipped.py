"""The ONNX models in the installed packages, and what to feed them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from gradlint.frontends.inputs import InputSpec, parse_inputs

SMALLEST = 10_000  # bytes: what is smaller is a test file
NOT_MODELS = {"onnx", "onnxruntime", "onnxscript", "gradlint-nn"}  # packages whose files are test data
DNSMOS = ("input_1=float32[1,901,161]",)

# what a file does not say enough about: package folder, or file, and what to feed as --input would
INPUTS: dict[str, tuple[str, ...]] = {
    "swift_f0": ("audio=float32[1,4096]", "fmin=46.875", "fmax=2093.75"),
    "aecmos_models": ("input=float32[1,3,16,160]",),
    "sig.onnx": DNSMOS,
    "bak_ovr.onnx": DNSMOS,
    "sig_bak_ovr.onnx": ("input_1=float32[1,144160]",),
}


def shipped() -> dict[str, Path]:
    """Every .onnx file of an installed package, named by package and file."""
    found: dict[str, Path] = {}
    for distribution in metadata.distributions():
        package = distribution.metadata["Name"]
        if package.lower().replace("_", "-") in NOT_MODELS:
            continue
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            # a wheel may lay a second copy outside the package folder
            inside = file.suffix == ".onnx" and ".." not in file.parts and ".data" not in str(file)
            if inside and path.is_file() and path.stat().st_size > SMALLEST:
                found[f"{package}/{path.stem}"] = path
    return dict(sorted(found.items()))


def given(path: Path) -> tuple[InputSpec, ...]:
    """The inputs of a file that cannot be inferred."""
    return parse_inputs(INPUTS.get(path.name) or INPUTS.get(path.parent.name) or ())
