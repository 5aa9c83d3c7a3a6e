"""Lines of the user's code: where an operator is called, and where its module is defined."""

from __future__ import annotations

import importlib.util
import sys
import textwrap

import pytest
import torch

from gradlint.frontends.torch.resolve import resolve
from tests.models.torch_samples import run

CODE = """\
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.net = nn.Sequential(
            nn.Linear(4, 4),
            nn.Sequential(
                nn.Tanh(),
                nn.Linear(4, 4),
            ),
        )

    def inner(self, x):
        return self.fc(x)

    def forward(self, x):
        x = self.inner(x)
        return x + self.net(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.heads = nn.ModuleList([
            nn.Linear(4, 2),
            nn.Linear(4, 2),
        ])
        for index in range(2):
            setattr(self, f"late{index}", nn.Linear(2, 2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.late1(self.heads[1](x))

def build():
    layers = []
    for _ in range(2):
        layers += [nn.Linear(4, 4), nn.Tanh()]
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.Linear(4, 1),
    )
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The code above as a module of a file in the working directory."""
    path = tmp_path / "net_under_test.py"
    path.write_text(textwrap.dedent(CODE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("net_under_test", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "net_under_test", module)
    spec.loader.exec_module(module)
    return module


def line(text: str, nth: int = 0) -> str:
    numbers = [number for number, row in enumerate(CODE.splitlines(), 1) if text in row]
    return f"{numbers[nth]}"


def test_call_sites_are_the_users_innermost_lines(user):
    graph = run(user.Net(), torch.randn(2, 4)).graph
    found = {node.id: str(node.source) for node in graph if node.source}
    assert found["blocks.0.fc:linear"] == f"net_under_test.py:{line('return self.fc(x)')}"
    assert found["blocks.1.net.1.1:linear"] == f"net_under_test.py:{line('return x + self.net(x)')}"
    assert found["blocks.1:add"] == found["blocks.1.net.0:linear"]
    assert found["heads.1:linear"] == f"net_under_test.py:{line('return self.late1')}"


def test_definitions_are_assignments_or_elements_of_containers(user):
    graph = run(user.Net(), torch.randn(2, 4)).graph
    found = {node.id: str(node.definition) for node in graph}
    where = "net_under_test.py:"
    assert found["blocks.0.fc:linear"] == where + line("self.fc = ")
    assert found["blocks.0.net.0:linear"] == where + line("nn.Linear(4, 4),", 0)
    assert found["blocks.0.net.1.0:tanh"] == where + line("nn.Tanh(),")
    assert found["blocks.0.net.1.1:linear"] == where + line("nn.Linear(4, 4),", 1)
    assert found["heads.1:linear"] == where + line("nn.Linear(4, 2),", 1)
    assert found["blocks.1:add"] == where + line("self.blocks = ")


def test_definitions_in_a_factory_are_known_from_its_run(user):
    module = resolve(user.build).module
    found = {node.id: str(node.definition) for node in run(module, torch.randn(2, 4)).graph}
    assert found["1:linear"] == f"net_under_test.py:{line('nn.Linear(4, 1),')}"
    assert found["0.2:linear"] == f"net_under_test.py:{line('nn.Sequential(*layers)')}"


def test_definitions_by_setattr_are_known_when_the_class_is_called_by_gradlint(user):
    module = resolve(user.Net).module
    found = {node.id: str(node.definition) for node in run(module, torch.randn(2, 4)).graph}
    assert found["late1:linear"] == f"net_under_test.py:{line('setattr')}"


def test_a_file_outside_the_working_directory_keeps_its_whole_path(user, tmp_path, monkeypatch):
    from gradlint.frontends.user_code import shown

    shown.cache_clear()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shown(user.__file__) == str(tmp_path / "net_under_test.py")
    shown.cache_clear()
