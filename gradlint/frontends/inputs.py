"""Input specifications: parse `--input` options, and draw random arrays from a specification."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.errors import InputError
from gradlint.measurements.coverage import InputInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPEC = re.compile(r"^(?:(?P<name>[^=]+)=)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?$")
_FILE = re.compile(r"^(?:(?P<name>[^=]+)=)?@(?P<path>.+)$")
_NUMBER = re.compile(r"^(?:(?P<name>[^=]+)=)?(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)$", re.IGNORECASE)
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "string")
ARRAYS = (*DTYPES, "uint16", "uint32", "uint64", "complex64", "complex128")  # what an array may hold
_WORD = "1"  # the value of a text input: a cast to a number accepts it


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The specification of one model input.

    Attributes:
        name: The name of the input; None if it is positional.
        dtype: One of `DTYPES`, or of `ARRAYS` if the values are given.
        shape: The shape; () for a scalar.
        below: Drawn integers are at least 0 and less than this bound. None: they are 0 or 1.
        value: A given array, which is used instead of a random one.
        given: Whether the user gave the input. False if it was inferred.
        avoid: An integer that is not drawn, such as the index of a padding row.
        note: A remark for the report on how the input was inferred.
    """

    name: str | None
    dtype: str
    shape: tuple[int, ...]
    below: int | None = None
    value: Any = None
    given: bool = False
    avoid: int | None = None
    note: str | None = None

    @property
    def text(self) -> str:
        """The specification as `--input` takes it, without the name: "float32[2,3,64,64]", "int64[2,9]<1000"."""
        bound = f"<{self.below}" if self.below is not None else ""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{bound}"

    def info(self, fallback: str = "input") -> InputInfo:
        """Return the row that the report shows. `fallback` is the name of an input that has none."""
        return InputInfo(self.name or fallback, self.text, self.given)

    def draw(self, rng: np.random.Generator) -> NDArray[Any]:
        """Draw an array of shape `shape`, or return the given `value`.

        Floats are standard normal, integers uniform below the bound, booleans fair coin flips, and text a fixed short word. A
        float scalar is 1, because it usually scales or bounds something. bfloat16 is drawn as float32; the caller converts it.
        """
        if self.value is not None:
            return np.asarray(self.value)
        if self.dtype == "string":
            return np.full(self.shape, _WORD)
        if self.dtype == "bool":
            return rng.integers(0, 2, self.shape).astype(bool)
        if self.dtype.startswith(("int", "uint")):
            below = self.below if self.below is not None else 2
            if self.avoid is None or not 0 <= self.avoid < below or below == 1:
                return rng.integers(0, below, self.shape).astype(self.dtype)
            drawn = rng.integers(0, below - 1, self.shape)
            return (drawn + (drawn >= self.avoid)).astype(self.dtype)
        kind = "float32" if self.dtype == "bfloat16" else self.dtype
        return rng.standard_normal(self.shape).astype(kind) if self.shape else np.ones((), kind)


def parse_inputs(texts: tuple[str, ...]) -> tuple[InputSpec, ...]:
    """Parse `--input` options such as `x=float32[2,3,224,224]`, `ids=int64[2,128]<1000`, `x=@batch.npz` and `rate=16000`.

    Raises InputError for any other text, an unknown dtype, and a file that holds no array.
    """
    return tuple(spec for text in texts for spec in _parse(text.strip()))


def _parse(text: str) -> list[InputSpec]:
    if match := _FILE.match(text):
        return _from_file(match["name"], Path(match["path"]))
    if match := _NUMBER.match(text):
        value = np.asarray(int(match["number"]) if match["number"].lstrip("+-").isdigit() else float(match["number"]))
        return [InputSpec(match["name"], str(value.dtype), (), value=value, given=True)]
    match = _SPEC.match(text)
    if match is None:
        raise InputError(
            f"--input {text!r} is not understood",
            hint="write name=dtype[shape], as in x=float32[2,3,224,224], ids=int64[2,128]<1000, x=@batch.npz or rate=16000",
        )
    if match["dtype"] not in DTYPES:
        raise InputError(f"--input {text!r}: unknown dtype {match['dtype']!r}", hint=f"one of {', '.join(DTYPES)}")
    shape = tuple(int(part) for part in match["shape"].split(",") if part.strip())
    below = int(match["below"]) if match["below"] else None
    if below is not None and not match["dtype"].startswith(("int", "uint")):
        raise InputError(f"--input {text!r}: a bound goes with an integer dtype", hint="drop the <N")
    return [InputSpec(match["name"], match["dtype"], shape, below, given=True)]


def _from_file(name: str | None, path: Path) -> list[InputSpec]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {name: loaded}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"--input: cannot read {path}: {error}", hint="give a .npy or .npz file of plain arrays, text as str"
        ) from error
    if name is not None and len(arrays) > 1:
        if name not in arrays:
            raise InputError(f"--input: {path} has no array {name!r}", hint=f"it has {', '.join(map(str, arrays))}")
        arrays = {name: arrays[name]}
    elif name is not None and arrays:
        arrays = {name: next(iter(arrays.values()))}
    if not arrays:
        raise InputError(f"--input: {path} holds no array", hint="write it with numpy.savez(path, x=...)")
    return [from_array(key, array) for key, array in arrays.items()]


def from_array(name: str | None, array: NDArray[Any]) -> InputSpec:
    """Return the specification of an input whose values are given. Raises InputError unless `array` holds numbers or text."""
    dtype = "string" if array.dtype.kind in "US" else array.dtype.name
    if dtype not in ARRAYS:
        raise InputError(f"input {name or 'array'!r} holds {dtype}, which no model takes", hint=f"one of {', '.join(ARRAYS)}")
    try:
        native = array.astype(str if dtype == "string" else dtype, copy=False)
    except UnicodeDecodeError as error:
        raise InputError(f"input {name or 'array'!r} holds bytes that are not ASCII text", hint="store it as str") from error
    return InputSpec(name, dtype, native.shape, value=native, given=True)


def without_blank(specs: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    """Let the first float input be drawn if all given inputs are zeros, as in a placeholder: no weight learns from them."""
    values = [spec.value for spec in specs]
    blank = [index for index, spec in enumerate(specs) if spec.dtype.startswith(("float", "bfloat")) and spec.shape]
    if not blank or any(value is None or value.dtype.kind in "US" or value.any() for value in values):
        return specs
    first = specs[blank[0]]
    note = f"{first.name or 'the input'} is all zeros, from which nothing learns: random numbers were put in their place"
    return tuple(replace(spec, value=None, note=note) if spec is first else spec for spec in specs)


def merge_given(inferred: tuple[InputSpec, ...], given: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    """Replace inferred inputs by given ones and return all of them in order.

    A given input replaces the inferred one of the same name, or, if it has no name, the one at the same position. Raises
    InputError if a given name is not an input, and if text is given for numbers or numbers for text.
    """
    merged = {spec.name: spec for spec in inferred}
    names = list(merged)
    for index, spec in enumerate(given):
        name = spec.name if spec.name is not None else (names[index] if index < len(names) else None)
        if name not in merged:
            raise InputError(
                f"the model has no input {spec.name!r}" if spec.name else f"the model has only {len(names)} inputs",
                hint=f"its inputs are {', '.join(map(str, names)) or 'none'}",
            )
        wanted = merged[name]
        if wanted.dtype != spec.dtype and "string" in (wanted.dtype, spec.dtype):
            raise InputError(
                f"input {name!r} holds {wanted.dtype}, and {spec.dtype} is given",
                hint=f"give it with --input {name}={wanted.text}",
            )
        merged[name] = replace(_as_number(spec, wanted), name=name)
    return tuple(merged.values())


def _as_number(spec: InputSpec, wanted: InputSpec) -> InputSpec:
    """Convert a given scalar to the dtype and the shape of an input with a single element. Other inputs are unchanged."""
    if spec.value is None or spec.shape or any(size != 1 for size in wanted.shape):
        return spec
    dtype = {"bfloat16": "float32", "string": None}.get(wanted.dtype, wanted.dtype)
    return replace(spec, dtype=wanted.dtype, shape=wanted.shape, value=np.full(wanted.shape, spec.value, dtype))


def refuse_guessed_numbers(specs: Sequence[InputSpec]) -> None:
    """Raise InputError when a lone float was inferred: such a bound or rate, not the model, may be what breaks a pass."""
    guessed = [spec.name or "?" for spec in specs if _is_guessed_as_one(spec)]
    if guessed:
        raise InputError(
            f"the pass is not finite, which may be due to {', '.join(guessed)}, inferred as 1",
            hint=f"give {'it' if len(guessed) == 1 else 'them'}: {' '.join(f'--input {name}=0.5' for name in guessed)}",
        )


def _is_guessed_as_one(spec: InputSpec) -> bool:
    return not spec.given and spec.value is None and not spec.shape and spec.dtype.startswith("float")
