"""Modules that hold random generators and files, and whose forward changes settings of the process: cases as in `odd_state`."""

# ruff: noqa: NPY002, PTH109 - these modules do on purpose what one should not do

from __future__ import annotations

import contextvars
import decimal
import io
import logging
import os
import random
import warnings

import numpy as np
import torch
from torch import nn

from tests.models.odd_state import Case, print_nothing, put

VARIABLE = contextvars.ContextVar("VARIABLE", default=0)
VARIABLE.set(5)

CASES: dict[str, Case] = {
    "deterministic": Case(
        put(), lambda m, x: torch.use_deterministic_algorithms(True), lambda m: torch.are_deterministic_algorithms_enabled()
    ),
    "threads": Case(put(), lambda m, x: torch.set_num_threads(3), lambda m: torch.get_num_threads()),
    "anomaly mode": Case(put(), lambda m, x: torch.autograd.set_detect_anomaly(True), lambda m: torch.is_anomaly_enabled()),
    "numpy errors": Case(put(), lambda m, x: np.seterr(all="ignore"), lambda m: np.geterr()),
    "dtype": Case(put(), lambda m, x: torch.set_default_dtype(torch.float64), lambda m: torch.get_default_dtype()),
    "device": Case(
        put(),
        lambda m, x: torch.set_default_device("cpu"),
        lambda m: getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None),
    ),
    "python random": Case(put(), lambda m, x: random.random(), lambda m: random.getstate()),
    "numpy random": Case(put(), lambda m, x: np.random.rand(), lambda m: np.random.get_state()[2]),
    "torch random": Case(put(), lambda m, x: torch.rand(3), lambda m: torch.get_rng_state()),
    "precision": Case(
        put(), lambda m, x: torch.set_float32_matmul_precision("medium"), lambda m: torch.get_float32_matmul_precision()
    ),
    "denormals": Case(
        put(), lambda m, x: torch.set_flush_denormal(True), lambda m: bool(torch.tensor(1e-310, dtype=torch.float64) * 0.5)
    ),
    "warnings": Case(put(), lambda m, x: warnings.simplefilter("error"), lambda m: list(warnings.filters)),
    "environment": Case(put(), lambda m, x: os.environ.update(ODD_MODULE="1"), lambda m: os.environ.get("ODD_MODULE")),
    "directory": Case(put(), lambda m, x: os.chdir("/"), lambda m: os.getcwd()),
    "decimal": Case(put(), lambda m, x: setattr(decimal.getcontext(), "prec", 5), lambda m: decimal.getcontext().prec),
    "logging": Case(put(), lambda m, x: logging.disable(50), lambda m: logging.root.manager.disable),
    "context variable": Case(put(), lambda m, x: VARIABLE.set(VARIABLE.get() + 1), lambda m: VARIABLE.get()),
    "hooks of all modules": Case(
        put(),
        lambda m, x: nn.modules.module.register_module_forward_hook(print_nothing),
        lambda m: len(nn.modules.module._global_forward_hooks),
    ),
    "print options": Case(put(), lambda m, x: torch.set_printoptions(precision=2), lambda m: repr(torch.tensor(1.23456))),
    "autocast": Case(put(), lambda m, x: torch.set_autocast_enabled("cpu", False), lambda m: torch.is_autocast_enabled("cpu")),
    # random generators, files and the like
    "random": Case(put(r=lambda: random.Random(3)), lambda m, x: m.r.random(), lambda m: m.r.getstate()),
    "torch generator": Case(
        put(r=lambda: torch.Generator().manual_seed(3)), lambda m, x: torch.rand(3, generator=m.r), lambda m: m.r.get_state()
    ),
    "numpy generator": Case(
        put(r=lambda: np.random.default_rng(3)), lambda m, x: m.r.random(), lambda m: m.r.bit_generator.state["state"]
    ),
    "numpy random state": Case(put(r=lambda: np.random.RandomState(3)), lambda m, x: m.r.rand(), lambda m: m.r.get_state()[2]),
    "text stream": Case(put(r=lambda: io.StringIO("abcdef")), lambda m, x: m.r.read(1), lambda m: m.r.tell()),
    "optimizer": Case(
        lambda m: put(o=torch.optim.Adam(m.parameters()))(m),
        lambda m, x: m.o.param_groups[0].update(lr=9.0),
        lambda m: m.o.param_groups[0]["lr"],
    ),
}
