"""Hostile `.pt2` files."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.attacks.planted import CALL, Planted

MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """The entries of a small exported program, by name within its folder."""
    pytest.importorskip("torch.export.pt2_archive")
    path = tmp_path_factory.mktemp("exported") / "m.pt2"
    batch = torch.export.Dim("batch", min=2, max=64)
    module = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    torch.export.save(torch.export.export(module, (torch.randn(4, 16),), dynamic_shapes=({0: batch},)), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(entries, path="m.pt2", how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in entries.items():
            archive.writestr(f"m/{name}", content)
    return path


def size_of(text):
    """Return an edit that makes `text` the first symbolic size of a program."""
    return lambda entry: entry.replace(b"Symbol('s", json.dumps(text)[1:-1].encode() + b" + Symbol('s", 1)


def renamed(old, new):
    return lambda entry: entry.replace(json.dumps(old).encode(), json.dumps(new).encode())


def changed(**fields):
    return lambda entry: json.dumps(json.loads(entry) | fields).encode()


def of_weight(**fields):
    def edit(entry):
        config = json.loads(entry)
        config["config"]["0.weight"].update(fields)
        return json.dumps(config).encode()

    return edit


def of_tensor(**fields):
    def edit(entry):
        config = json.loads(entry)
        config["config"]["0.weight"]["tensor_meta"].update(fields)
        return json.dumps(config).encode()

    return edit


def of_node(index, **fields):
    def edit(entry):
        document = json.loads(entry)
        document["graph_module"]["graph"]["nodes"][index].update(fields)
        return json.dumps(document).encode()

    return edit


def of_graph(**fields):
    def edit(entry):
        document = json.loads(entry)
        document["graph_module"]["graph"].update(fields)
        return json.dumps(document).encode()

    return edit


def integers(*sizes):
    return [{"as_int": size} for size in sizes]


CUSTOM = {"a": {"path_name": "custom_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}}
PROGRAMS = {
    "nested deeply": (MODEL, lambda _: b"[" * 10**5 + b"]" * 10**5),
    "nested objects": (MODEL, lambda _: b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "a long description": (MODEL, lambda _: b'"' + b"a" * (65 << 20) + b'"'),
    "no JSON": (MODEL, lambda _: b"\xff\xfe"),
    "a list": (MODEL, lambda _: b"[]"),
    "an empty object": (MODEL, lambda _: b"{}"),
    "a name twice": (MODEL, lambda entry: entry[:-1] + b', "guards_code": ["' + CALL.encode() + b'"]}'),
    "a size that is a call": (MODEL, size_of(CALL)),
    "a size that is an attribute": (MODEL, size_of("().__class__.__base__.__subclasses__()")),
    "a size that is a comprehension": (MODEL, size_of("[x for x in ()]")),
    "a size that is a lambda": (MODEL, size_of("(lambda: 1)()")),
    "a tower of powers": (MODEL, size_of("9**9**9**9")),
    "a large power": (MODEL, size_of("Integer(10)**Integer(10000000000)")),
    "powers within powers": (MODEL, size_of("Pow(" * 8 + "9" + ", 99)" * 8)),
    "a power of calls": (MODEL, size_of("Pow(Integer(9), Pow(Integer(9), Integer(9)))")),
    "a factorial": (MODEL, size_of("factorial(10000000)")),
    "a size of many digits": (MODEL, size_of("9" * 10**6)),
    "a size nested deeply": (MODEL, size_of("(" * 10**5 + "1" + ")" * 10**5)),
    "a symbol with a name of its own": (MODEL, lambda entry: entry.replace(b"Symbol('s", b"Symbol('__import__s")),
    "an input that is code": (MODEL, renamed("input", f"input={CALL}")),
    "an argument that is code": (MODEL, lambda entry: entry.replace(b'["input"]', json.dumps([f"input={CALL}"]).encode())),
    "a control character": (MODEL, renamed("input", "in\x1b[2Jput")),
    "a workflow command": (MODEL, renamed("input", "\n::error::forged")),
    "a long name": (MODEL, renamed("input", "n" * 10**6)),
    "os.system": (MODEL, of_node(0, target="os.system")),
    "an operator of a library": (MODEL, of_node(0, target="torch.ops.mine.run.default")),
    "torch.load": (MODEL, of_node(0, target="torch.load")),
    "an operator that is none": (MODEL, of_node(0, target="torch.ops.aten.nothing.default")),
    "a node without inputs": (MODEL, of_node(0, inputs=[])),
    "a node of itself": (MODEL, of_node(0, inputs=[{"name": "input", "arg": {"as_tensor": {"name": "linear"}}, "kind": 1}])),
    "no nodes": (MODEL, of_graph(nodes=[])),
    "nodes that are no list": (MODEL, of_graph(nodes=7)),
    "outputs of nothing": (MODEL, of_graph(outputs=[{"as_tensor": {"name": "nothing"}}])),
    "a version to come": (MODEL, changed(schema_version={"major": 999, "minor": 0})),
    "weights of nothing": (WEIGHTS, lambda _: b'{"config": {}}'),
    "weights nested deeply": (WEIGHTS, lambda _: b'{"config":' * 10**5),
    "weights that are a list": (WEIGHTS, lambda _: b"[]"),
    "pickled weights": (WEIGHTS, of_weight(use_pickle=True)),
    "weights of a path": (WEIGHTS, of_weight(path_name="weight_/../../../../etc/passwd")),
    "weights of a custom object": (WEIGHTS, of_weight(path_name="custom_obj_0")),
    "weights that are not there": (WEIGHTS, of_weight(path_name="weight_77")),
    "a negative size": (WEIGHTS, of_tensor(sizes=integers(-16, 16))),
    "a huge size": (WEIGHTS, of_tensor(sizes=integers(2**40, 2**20))),
    "a huge stride": (WEIGHTS, of_tensor(strides=integers(2**60, 1))),
    "a negative stride": (WEIGHTS, of_tensor(strides=integers(-16, 1))),
    "an expanded size": (WEIGHTS, of_tensor(sizes=integers(10**7, 10**6), strides=integers(0, 0))),
    "an offset beyond the end": (WEIGHTS, of_tensor(storage_offset={"as_int": 2**50})),
    "a negative offset": (WEIGHTS, of_tensor(storage_offset={"as_int": -4096})),
    "a dtype that is none": (WEIGHTS, of_tensor(dtype=999)),
    "a wider dtype": (WEIGHTS, of_tensor(dtype=8)),
    "another device": (WEIGHTS, of_tensor(device={"type": "cuda", "index": 0})),
    "weights that are code": (WEIGHTS, renamed("0.weight", f'0.w"), {CALL}, ("')),
    "too few bytes": ("data/weights/weight_0", lambda entry: entry[:-4]),
    "no bytes": ("data/weights/weight_0", lambda _: b""),
    "custom objects": (CONSTANTS, lambda _: json.dumps({"config": CUSTOM}).encode()),
    "pickled constants": (
        CONSTANTS,
        lambda _: json.dumps({"config": {"a": {"path_name": "tensor_0", "use_pickle": True}}}).encode(),
    ),
    "another archive version": ("archive_version", lambda _: b"99999999999999999999"),
    "another archive format": ("archive_format", lambda _: b"exe"),
}


@pytest.mark.parametrize(("name", "edit"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_programs(refused_within_limits, entries, name, edit):
    content = edit(entries[name])
    assert content != entries[name]
    refused_within_limits(write(entries | {name: content}))


ADDED = {
    "a pickle beside": ({"extra/pickle": pickle.dumps(Planted())}, "compiled code"),
    "compiled code": ({"data/aotinductor/model/a.so": b"\x7fELF"}, "compiled code"),
    "a path outside": ({"../../PLANTED": b"x"}, "none that torch writes"),
    "an absolute path": ({"/PLANTED": b"x"}, "none that torch writes"),
    "a path of another system": ({"..\\PLANTED": b"x"}, "none that torch writes"),
    "a line break": ({"data/a\n::error::b": b"x"}, "none that torch writes"),
    "many entries": ({f"data/weights/x_{index}": b"" for index in range((1 << 17) + 1)}, "entries"),
}


@pytest.mark.parametrize(("more", "because"), ADDED.values(), ids=ADDED.keys())
def test_entries_that_no_program_has(refused_within_limits, entries, more, because):
    refused_within_limits(write(entries | more), because=because)


def test_a_bomb(refused_within_limits, entries):
    """A gigabyte of zeros in a megabyte."""
    with zipfile.ZipFile("m.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if name != MODEL:
                archive.writestr(f"m/{name}", content)
        with archive.open(f"m/{MODEL}", "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(1 << 24))
    refused_within_limits("m.pt2", because="torch saves them as they are")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(refused_within_limits, entries):
    write(entries)
    with zipfile.ZipFile("m.pt2", "a") as archive:
        archive.writestr(f"m/{MODEL}", entries[MODEL])
    refused_within_limits("m.pt2", because="with a name of their own")


def test_a_size_that_the_archive_only_claims(refused_within_limits, entries):
    """The directory at the end of the archive says four gigabytes of an entry of a few bytes."""
    write(entries)
    data = bytearray(Path("m.pt2").read_bytes())
    place = struct.unpack("<I", data[-6:-2])[0]  # where the directory begins
    assert data[place : place + 4] == b"PK\x01\x02"
    data[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
    Path("m.pt2").write_bytes(data)
    refused_within_limits("m.pt2", because="torch saves them as they are")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_truncated_archive(refused_within_limits, entries, share):
    data = Path(write(entries)).read_bytes()
    Path("m.pt2").write_bytes(data[: int(share * len(data))])
    refused_within_limits("m.pt2", because="m.pt2")


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, CONSTANTS, "data/weights/weight_0", "archive_format", "byteorder"])
def test_an_entry_that_is_cut_or_missing(refused_within_limits, entries, run, name):
    if name != "byteorder":  # which need not be there
        refused_within_limits(write(entries | {name: entries[name][: len(entries[name]) // 2]}))
        refused_within_limits(write({key: content for key, content in entries.items() if key != name}))
