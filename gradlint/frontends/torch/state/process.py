"""The settings of the process and of the thread that user code can change, and the context in which a check runs."""

from __future__ import annotations

import contextvars
import decimal
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gradlint.frontends.torch.state.restoring import Restoring

_torch: Any = torch  # partly untyped
_CORE: Any = torch._C  # noqa: SLF001 - some settings have no public function that reads them
_DEVICES = ("cpu", "cuda")


class _Setting(NamedTuple):
    """One setting: its name in messages, and the functions that read and write its value."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _settings() -> Iterator[_Setting]:
    yield _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield _Setting("torch's default device", _default_device, torch.set_default_device)
    yield _Setting("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled)
    yield _Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads)
    yield _Setting("torch's deterministic algorithms", _determinism, lambda now: torch.use_deterministic_algorithms(**now))
    fill: Any = _torch.utils.deterministic
    yield _attribute("torch.utils.deterministic.fill_uninitialized_memory", fill, "fill_uninitialized_memory")
    yield _Setting("torch's anomaly mode", _anomaly, lambda now: _torch.set_anomaly_enabled(*now))
    yield _Setting("torch's matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    yield _Setting("torch's flushing of denormal numbers", _flushes_denormals, torch.set_flush_denormal)
    for name in ("enabled", "benchmark", "deterministic"):
        yield _attribute(f"torch.backends.cudnn.{name}", torch.backends.cudnn, name)
    for name in ("flash", "mem_efficient", "math"):
        read, write = (getattr(torch.backends.cuda, form.format(name)) for form in ("{}_sdp_enabled", "enable_{}_sdp"))
        yield _Setting(f"torch's {name} attention", read, write)
    for name in ("mkldnn", "nnpack"):
        if hasattr(_CORE, f"_get_{name}_enabled"):
            yield _Setting(f"torch's {name}", getattr(_CORE, f"_get_{name}_enabled"), getattr(_CORE, f"_set_{name}_enabled"))
    for device in _DEVICES:
        yield _Setting(f"torch's autocast on {device}", partial(_autocast, device), partial(_set_autocast, device))
    yield _Setting("torch's print options", lambda: dict(vars(_torch._tensor_str.PRINT_OPTS)), _set_print_options)  # noqa: SLF001
    yield _Setting("numpy's error handling", np.geterr, lambda now: np.seterr(**now))
    yield _Setting("numpy's error callback", np.geterrcall, np.seterrcall)
    yield _Setting("numpy's print options", np.get_printoptions, lambda now: np.set_printoptions(**now))
    yield _Setting("the decimal context", decimal.getcontext().copy, decimal.setcontext)
    yield _Setting("the working directory", _working_directory, os.chdir)
    yield _Setting("the environment variables", lambda: dict(os.environ), _set_environment)
    yield _Setting("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
    yield _Setting("Python's garbage collection", gc.isenabled, lambda now: (gc.enable if now else gc.disable)())
    yield _Setting("Python's garbage collection", gc.get_threshold, lambda now: gc.set_threshold(*now))
    yield _attribute("sys.stdout", sys, "stdout")
    yield _attribute("sys.stderr", sys, "stderr")
    yield _attribute("logging.disable", logging.root.manager, "disable")
    yield _attribute("the level of the root logger", logging.root, "level")
    yield _Setting("the handlers of the root logger", lambda: list(logging.root.handlers), _set_handlers)


def _attribute(name: str, owner: Any, attribute: str) -> _Setting:
    return _Setting(name, lambda: getattr(owner, attribute), lambda now: setattr(owner, attribute, now))


def keep_settings(restoring: Restoring) -> None:
    """Save the settings of the process; they are written back where they have changed."""
    for setting in _settings():
        before = setting.read()

        def restore(setting: _Setting = setting, before: Any = before) -> None:
            if setting.read() != before:
                setting.write(before)

        restoring.later(setting.name, restore)
    _keep_context(restoring)
    tables: Any = _torch.nn.modules.module
    for name, table in vars(tables).items():
        if name.startswith("_global_") and isinstance(table, dict):
            restoring.later("the hooks of all modules", partial(_refill, table, dict(table)))
    filters, shown = list(warnings.filters), warnings.showwarning
    restoring.later("the warning filters", lambda: _restore_warnings(filters, shown))


def _restore_warnings(filters: list[Any], shown: Any) -> None:
    warnings.showwarning = shown
    if list(warnings.filters) != filters:
        warnings.filters[:] = filters  # type: ignore[index]
        with warnings.catch_warnings():  # the module is to read the filters again
            pass


def _refill(table: dict[Any, Any], items: dict[Any, Any]) -> None:
    if list(table.items()) != list(items.items()):
        table.clear()
        table.update(items)


def _keep_context(restoring: Restoring) -> None:
    before = contextvars.copy_context()

    def restore() -> None:
        for variable, value in contextvars.copy_context().items():
            by_setting = variable.name in {"numpy.ufunc.extobj", "decimal_context"}
            if variable in before and before[variable] is not value and not by_setting:
                variable.set(before[variable])

    restoring.later("the context variables", restore)


def _default_device() -> Any:
    context = getattr(_torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)  # noqa: SLF001 - what `set_default_device` writes
    return None if context is None else context.device


def _determinism() -> dict[str, bool]:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return {"mode": torch.are_deterministic_algorithms_enabled(), "warn_only": warn_only}


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _flushes_denormals() -> bool:
    return not bool(torch.full((), 1e-310, dtype=torch.float64, device="cpu").mul(0.5))


def _autocast(device: str) -> tuple[bool, Any]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_autocast(device: str, now: tuple[bool, Any]) -> None:
    enabled, dtype = now
    _torch.set_autocast_enabled(device, enabled)
    _torch.set_autocast_dtype(device, dtype)


def _set_print_options(options: dict[str, Any]) -> None:
    vars(_torch._tensor_str.PRINT_OPTS).update(options)  # noqa: SLF001


def _working_directory() -> str:
    with suppress(FileNotFoundError):  # it was removed
        return str(Path.cwd())
    return ""


def _set_environment(variables: dict[str, str]) -> None:
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


def _set_handlers(handlers: list[logging.Handler]) -> None:
    logging.root.handlers[:] = handlers


@contextmanager
def usual_context(module: nn.Module | None) -> Iterator[None]:
    """Run the body as a plain script would: not in inference mode, with factories that make float32 tensors with values.

    A default dtype that the model has itself is left as it is, and so is a default device other than "meta".
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch.empty(0).is_meta:
            stack.enter_context(torch.device("cpu"))
        tensors = () if module is None else (*module.parameters(), *module.buffers())
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        default = torch.get_default_dtype()
        if default is not torch.float32 and (default not in dtypes if dtypes else module is None):
            torch.set_default_dtype(torch.float32)  # put back with the other settings
        yield
