"""Hostile `.safetensors` files."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from tests.attacks.planted import Planted


def weights(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(**fields):
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | fields}


def two(first, second):
    return {name: one(data_offsets=places)["a"] for name, places in (("a", first), ("b", second))}


TENSORS = {
    "nothing": b"",
    "a few bytes": b"\1\2\3",
    "a header without end": weights(b"{}", size=2**63),
    "a header longer than the file": weights(b"{}", size=3),
    "no header": weights(b""),
    "a list": weights(b"[]"),
    "a number": weights(b"7"),
    "a header nested deeply": weights(b"[" * 10**5),
    "objects nested deeply": weights(b'{"a":' * 10**5),
    "no text": weights(b"\xff" * 100),
    "a huge header": weights(b'{"' + b"a" * (17 << 20) + b'":1}'),
    "a name twice": weights(json.dumps(one()).encode()[:-1] + b', "a": ' + json.dumps(one()["a"]).encode() + b"}", bytes(16)),
    "a negative size": weights(one(shape=[-4]), bytes(16)),
    "two negative sizes": weights(one(shape=[-2, -2]), bytes(16)),
    "a size as text": weights(one(shape=["4"]), bytes(16)),
    "a size as a fraction": weights(one(shape=[4.0]), bytes(16)),
    "a size that is true": weights(one(shape=[True, 4]), bytes(16)),
    "a shape as text": weights(one(shape="4"), bytes(16)),
    "a shape of many axes": weights(one(shape=[1] * 10**5 + [4]), bytes(16)),
    "a shape that overflows": weights(one(shape=[2**32, 2**32, 4]), bytes(16)),
    "a shape of many digits": weights(
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 16]}}', bytes(16)
    ),
    "a larger shape": weights(one(shape=[5]), bytes(16)),
    "a smaller shape": weights(one(shape=[3]), bytes(16)),
    "another dtype": weights(one(dtype="F64"), bytes(16)),
    "a dtype that is none": weights(one(dtype="OBJECT"), bytes(16)),
    "a dtype that is a list": weights(one(dtype=["F32"]), bytes(16)),
    "no dtype": weights({"a": {"shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "no shape": weights({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, bytes(16)),
    "no place": weights({"a": {"dtype": "F32", "shape": [4]}}, bytes(16)),
    "a place of three ends": weights(one(data_offsets=[0, 16, 16]), bytes(16)),
    "ends the wrong way round": weights(one(data_offsets=[16, 0]), bytes(16)),
    "a negative end": weights(one(data_offsets=[-16, 0]), bytes(16)),
    "an end beyond the file": weights(one(data_offsets=[2**40, 2**40 + 16]), bytes(16)),
    "an end that is not a number": weights(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, NaN]}}', bytes(16)),
    "tensors that overlap": weights(two([0, 16], [8, 24]), bytes(24)),
    "tensors in one place": weights(two([0, 16], [0, 16]), bytes(16)),
    "a hole": weights(two([0, 16], [32, 48]), bytes(48)),
    "bytes behind": weights(one(), bytes(17)),
    "too few bytes": weights(one(), bytes(15)),
    "a pickle": pickle.dumps(Planted()),
    "an entry that is a number": weights({"a": 7}),
    "a name with control characters": weights({"\x1b[2J\n::error::x": one()["a"]}, bytes(16)),
    "a long name": weights({"n" * 10**5: one()["a"]}, bytes(16)),
}


@pytest.mark.parametrize("content", TENSORS.values(), ids=TENSORS.keys())
def test_weights(refused_within_limits, content):
    Path("w.safetensors").write_bytes(content)
    Path("net.py").write_text("import torch\n\ndef build():\n    return torch.nn.Linear(4, 4)\n", encoding="utf-8")
    refused_within_limits("net.py:build", "--weights", "w.safetensors")


def test_weights_that_are_no_file(refused_within_limits):
    Path("net.py").write_text("import torch\n\ndef build():\n    return torch.nn.Linear(4, 4)\n", encoding="utf-8")
    os.mkfifo("pipe.safetensors")
    Path("zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.safetensors", "zero.safetensors"):
        refused_within_limits("net.py:build", "--weights", name)
