"""Weights kept outside of the model: only a file of its own, in or below the model's folder, with the bytes that it needs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

SIDE = 16
BYTES = SIDE * SIDE * 4


@pytest.fixture
def project(tmp_path):
    """A folder with a model's folder in it, and weights beside the latter."""
    (tmp_path / "m" / "sub").mkdir(parents=True)
    weights = np.random.default_rng(0).normal(0, SIDE**-0.5, (SIDE, SIDE)).astype(np.float32).tobytes()
    for name in ("secret.bin", "m/w.bin", "m/sub/w.bin"):
        (tmp_path / name).write_bytes(weights)
    return tmp_path


def model(path, location, dims=(SIDE, SIDE), kind=TensorProto.FLOAT, **more):
    """Write a model whose weight lies at `location`; `more` are offset and length as texts."""
    tensor = TensorProto(name="w", data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None if name == "y" else [8, SIDE]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString())
    return str(path)


def refused(run, *args, because, probe=False):
    code, out, err = run(*args, *([] if probe else ["--no-probe"]))
    assert (code, out) == (2, "")
    assert because in err
    assert "internal error" not in err
    assert "Traceback" not in err
    return err


def accepted(run, target):
    code, out, err = run(target, "--no-probe", "--output-format", "json")
    assert code == 0, err
    assert json.loads(out)["targets"][0]["frontend"] == "onnx"


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "sub/./w.bin", "sub//w.bin"])
def test_a_file_in_or_below_the_folder_is_read(run, project, location):
    accepted(run, model(project / "m" / "model.onnx", location))


OUTSIDE = ["../secret.bin", "sub/../../secret.bin", "..", ".", "", "sub/..", "sub/../w.bin", "/etc/passwd", "//etc/passwd", "/"]


@pytest.mark.parametrize("location", [*OUTSIDE, "{}/secret.bin", "{}/m/w.bin", "/dev/zero", "/proc/self/environ"])
def test_paths_that_lead_out_are_refused(run, project, location):
    target = model(project / "m" / "model.onnx", location.format(project))
    refused(run, target, because="is no file" if location == "." else "outside the model's folder")


@pytest.mark.parametrize("leads", ["../secret.bin", "/dev/zero", "/proc/self/environ", "twice", "sub/out", "loop"])
def test_links_that_lead_out_are_refused(run, project, leads):
    (project / "m" / "link").symlink_to(leads)
    (project / "m" / "twice").symlink_to("../secret.bin")
    (project / "m" / "sub" / "out").symlink_to(project / "secret.bin")
    (project / "m" / "loop").symlink_to("link")
    target = model(project / "m" / "model.onnx", "link")
    refused(run, target, because="is missing" if leads == "loop" else "outside the model's folder")


def test_a_link_to_a_folder_outside_is_refused_and_one_within_is_not(run, project):
    (project / "m" / "out").symlink_to("..")
    refused(run, model(project / "m" / "a.onnx", "out/secret.bin"), because="outside the model's folder")
    (project / "m" / "in").symlink_to("sub")
    accepted(run, model(project / "m" / "b.onnx", "in/w.bin"))


def test_a_download_cache_of_links_is_read(run, project):
    """Names are links to blobs, for the model and for its weights."""
    (project / "blobs").mkdir()
    (project / "snapshot").mkdir()
    (project / "m" / "w.bin").rename(project / "blobs" / "1a2b")
    (project / "snapshot" / "model.onnx.data").symlink_to("../blobs/1a2b")
    model(project / "blobs" / "3c4d", "model.onnx.data")
    (project / "snapshot" / "model.onnx").symlink_to("../blobs/3c4d")
    accepted(run, str(project / "snapshot" / "model.onnx"))


@pytest.mark.parametrize("location", ["hard", "a b/h'ard", "$(touch PWNED)", "x; touch PWNED", "-rf"])
def test_a_hard_link_is_refused_with_a_command_that_mends_it(run, project, location):
    """A package manager that shares files between environments makes such links too."""
    place = project / "m" / location
    place.parent.mkdir(exist_ok=True)
    os.link(project / "secret.bin", place)
    target = model(project / "m" / "model.onnx", location)
    for probe in (False, True):
        err = refused(run, target, because="is a hard link to a file with other names", probe=probe)
    command = err[err.index("cp ") :].strip().split("\n")[0]
    assert shlex.split(command)[1] == str(place)
    subprocess.run(["/bin/sh", "-c", command], cwd=project, check=True)  # what the user would paste
    assert not [*project.rglob("PWNED*")]
    assert place.stat().st_nlink == 1
    accepted(run, target)


def test_a_hard_link_whose_name_cannot_be_pasted_gets_no_command(run, project):
    os.link(project / "secret.bin", project / "m" / "a\nb")
    err = refused(run, model(project / "m" / "model.onnx", "a\nb"), because="is a hard link")
    assert "cp " not in err
    assert "copy of its own" in err


def test_a_hard_link_behind_a_link_is_refused(run, project):
    os.link(project / "secret.bin", project / "m" / "hard")
    (project / "m" / "soft").symlink_to("hard")
    refused(run, model(project / "m" / "model.onnx", "soft"), because="is a hard link")


def test_a_hard_linked_model_with_its_weights_inside_is_read(run, project):
    (project / "m" / "model.onnx").hardlink_to(Path(__file__).resolve().parents[2] / "sample_models" / "tanh_gain_healthy.onnx")
    assert (project / "m" / "model.onnx").stat().st_nlink > 1
    accepted(run, str(project / "m" / "model.onnx"))


@pytest.mark.parametrize("probe", [True, False])
def test_a_pipe_is_no_file(run, project, probe):
    os.mkfifo(project / "m" / "pipe")
    refused(run, model(project / "m" / "model.onnx", "pipe"), because="is no file", probe=probe)


def test_a_folder_is_no_file(run, project):
    refused(run, model(project / "m" / "model.onnx", "sub"), because="is no file")


@pytest.mark.parametrize("location", ["a\0b", "x" * 5000, "nowhere", "sub/nowhere", "w.bin/x"])
def test_names_of_no_file(run, project, location):
    refused(run, model(project / "m" / "model.onnx", location), because="is missing")


@pytest.mark.parametrize("how", ["its name", "another way to it", "hard link", "link", "link as the target"])
def test_the_model_is_no_weight_file(run, project, how):
    target = project / "m" / "model.onnx"
    location = {"its name": "model.onnx", "another way to it": "sub/../model.onnx"}.get(how, "other")
    location = "./model.onnx" if how == "another way to it" else location
    model(target, location, dims=(4,))
    if how == "hard link":
        os.link(target, project / "m" / "other")
    elif how == "link":
        (project / "m" / "other").symlink_to("model.onnx")
    elif how == "link as the target":
        (project / "m" / "named.onnx").symlink_to("model.onnx")
        model(target, "named.onnx", dims=(4,))
        target = project / "m" / "named.onnx"
    refused(run, str(target), because="hard link" if how == "hard link" else "the model itself")


NUMBERS = {
    "offset beyond the end": ("of a file of 1024", {"offset": str(BYTES + 1)}),
    "offset far beyond the end": ("of a file of 1024", {"offset": str(2**62)}),
    "offset that leaves too little": ("has 1020 bytes where", {"offset": "4"}),
    "negative offset": ("not a number", {"offset": "-1"}),
    "negative offset of a page": ("not a number", {"offset": "-4096", "length": "4096"}),
    "length beyond the end": ("of a file of 1024", {"length": str(BYTES + 1)}),
    "length far beyond the end": ("of a file of 1024", {"length": str(2**63)}),
    "length that is too small": ("has 1023 bytes where", {"length": str(BYTES - 1)}),
    "no bytes": ("has 0 bytes where", {"length": "0"}),
    "negative length": ("not a number", {"length": "-1"}),
    "negative length of all": ("not a number", {"length": str(-BYTES)}),
    "offset and length beyond the end": ("bytes 512 to 1536 of a file of 1024", {"offset": "512", "length": str(BYTES)}),
    "many digits": ("not a number", {"offset": "9" * 5000}),
    "words": ("not a number", {"offset": "zero"}),
    "an underscore": ("not a number", {"length": "1_024"}),
    "a fraction": ("not a number", {"length": "1024.0"}),
    "hexadecimal": ("not a number", {"length": "0x400"}),
    "not a number": ("not a number", {"offset": "nan"}),
    "other digits": ("not a number", {"length": "\u0661\u0660\u0662\u0664"}),
}


@pytest.mark.parametrize(("because", "more"), NUMBERS.values(), ids=NUMBERS.keys())
def test_offsets_and_lengths_that_do_not_fit(run, project, because, more):
    target = model(project / "m" / "model.onnx", "w.bin", **more)
    refused(run, target, because=because)


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("dims", [(-1, 4), (2**40, 2**40), (2**62,)])
def test_shapes_that_no_file_holds(run, project, dims, probe):
    code, _, err = run(model(project / "m" / "model.onnx", "w.bin", dims=dims), *([] if probe else ["--no-probe"]))
    assert code == 2
    assert "internal error" not in err


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.UNDEFINED, 99])
def test_types_without_a_size(run, project, kind):
    code, _, err = run(model(project / "m" / "model.onnx", "w.bin", kind=kind), "--no-probe")
    assert code == 2
    assert "internal error" not in err


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("dims", [(0,), (SIDE, 0)])
def test_an_empty_weight_in_an_empty_file(run, project, dims, probe):
    (project / "m" / "w.bin").write_bytes(b"")
    code, _, err = run(model(project / "m" / "model.onnx", "w.bin", dims=dims), *([] if probe else ["--no-probe"]))
    assert code in {0, 2}
    assert "internal error" not in err


def test_from_stdin_there_is_no_folder(project, run, monkeypatch):
    target = model(project / "m" / "model.onnx", "w.bin")
    monkeypatch.chdir(project / "m")
    with open(target, encoding="utf-8") as stdin:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", stdin)
        refused(run, "-", because="which has no folder")
