"""Real architectures at default initialization, train mode: growth from input to output, predicted against measured.

The configurations of the transformers library that `architectures.py` builds, the hand-written networks beside it, and the
families of torchvision where it can be imported. Prints one row per family as soon as it is compared, then the figures against
their limits.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from architectures import AS_SHIPPED, TRANSFORMERS, build
from common import Rows, every, parser
from plain_architectures import PLAIN
from rich.console import Console
from theory_common import (
    QUALITY,
    QUANTILE,
    Compared,
    Quality,
    Values,
    attempted,
    compare,
    decades,
    limits,
    quality_limits,
    save,
    step_table,
)

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.targets import Target
from gradlint.load import load

HOW_TO = """torchvision cannot be imported here: its families are left out. An environment of its own has them:
    python3 -m venv .venv-torchvision
    .venv-torchvision/bin/pip install torch==2.14.1 torchvision==0.29.1 transformers --editable .
    .venv-torchvision/bin/python benchmarks/theory_architectures.py"""

STEP = 12  # of a quick run
IMAGES, CLIPS = (8, 3, 64, 64), (4, 3, 8, 64, 64)

# family: its input, and arguments other than the number of classes
TORCHVISION: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "alexnet": (IMAGES, {}),
    "vgg11": (IMAGES, {}),
    "vgg16_bn": (IMAGES, {}),
    "resnet18": (IMAGES, {}),
    "resnet50": (IMAGES, {}),
    "resnext50_32x4d": (IMAGES, {}),
    "wide_resnet50_2": (IMAGES, {}),
    "densenet121": (IMAGES, {}),
    "squeezenet1_0": (IMAGES, {}),
    "squeezenet1_1": (IMAGES, {}),
    "googlenet": (IMAGES, {"aux_logits": False, "init_weights": True}),
    "inception_v3": ((8, 3, 128, 128), {"aux_logits": False, "init_weights": True}),
    "mobilenet_v2": (IMAGES, {}),
    "mobilenet_v3_small": (IMAGES, {}),
    "mobilenet_v3_large": (IMAGES, {}),
    "shufflenet_v2_x1_0": (IMAGES, {}),
    "mnasnet1_0": (IMAGES, {}),
    "efficientnet_b0": (IMAGES, {}),
    "efficientnet_v2_s": (IMAGES, {}),
    "regnet_x_400mf": (IMAGES, {}),
    "regnet_y_400mf": (IMAGES, {}),
    "convnext_tiny": (IMAGES, {}),
    "vit_b_16": (IMAGES, {"image_size": 64}),
    "swin_t": (IMAGES, {}),
    "swin_v2_t": (IMAGES, {}),
    "maxvit_t": ((2, 3, 224, 224), {}),
    "fcn_resnet50": (IMAGES, {"weights_backbone": None}),
    "deeplabv3_mobilenet_v3_large": (IMAGES, {"weights_backbone": None}),
    "lraspp_mobilenet_v3_large": (IMAGES, {"weights_backbone": None}),
    "r3d_18": (CLIPS, {}),
    "mc3_18": (CLIPS, {}),
    "r2plus1d_18": (CLIPS, {}),
    "s3d": ((2, 3, 16, 224, 224), {}),
}


def targets() -> dict[str, tuple[str, Callable[[], tuple[Any, tuple[InputSpec, ...]]]]]:
    """Every family: the library it comes from, and what makes a target with its inputs (none where they are inferred)."""
    known: dict[str, tuple[str, Callable[[], tuple[Any, tuple[InputSpec, ...]]]]] = {}
    for name in (*TRANSFORMERS, *AS_SHIPPED):
        known[name] = "transformers", partial(_built, name)
    known |= {name: ("plain", partial(_built, name)) for name in PLAIN}
    if importlib.util.find_spec("torchvision") is not None:
        known |= {f"tv:{name}": ("torchvision", partial(_torchvision, name)) for name in TORCHVISION}
    return known


def _built(name: str) -> tuple[Any, tuple[InputSpec, ...]]:
    model, inputs = build(name)
    if inputs is None:
        return model, ()
    if isinstance(inputs, Mapping):
        return Target(model, (), dict(inputs)), ()
    return Target(model, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}), ()


def _torchvision(name: str) -> tuple[Any, tuple[InputSpec, ...]]:
    models = importlib.import_module("torchvision.models")  # may be missing
    torch.manual_seed(0)
    shape, settings = TORCHVISION[name]
    return models.get_model(name, weights=None, **settings).train(), (InputSpec(None, "float32", shape, given=True),)


def examine(name: str, library: str, make: Callable[[], tuple[Any, tuple[InputSpec, ...]]], seeds: int) -> Compared:
    """Probe one family as a user would, and predict it."""
    model, inputs = make()
    loaded = load(model, inputs)
    measurement = loaded.measure(seeds=seeds, seed=0, progress=lambda _: None)
    return compare(name, loaded.graph_of(), measurement, labels={"library": library})


def on_spine(model: Compared) -> Values:
    """The forward levels of the spine."""
    return model.forward.only(model.on_spine)


def _middle(values: Values) -> float:
    """Median error, with its sign; NaN where nothing was predicted."""
    error = values.error[values.both]
    return float(np.median(error)) if error.size else math.nan


def cells(model: Compared) -> tuple[str, ...]:
    """The row of one family."""
    growth, quality = model.growth, Quality.of([model.backward])
    return (
        model.name,
        *(decades(values[0]) for values in (growth.measured, growth.predicted, growth.error)),
        decades(growth.sd[0], "{:.2f}"),
        "" if growth.inside[0] else "out",
        decades(_middle(on_spine(model))),
        *quality.cells,
        f"{1000 * model.seconds:.0f}",
    )


def growth_limits(models: Sequence[Compared]) -> str:
    """End-to-end figures; a family whose growth could not be predicted is not within any bound."""
    measured = [model for model in models if model.growth.is_measured[0]]
    error = np.array([np.nan_to_num(abs(model.growth.error[0]), nan=math.inf) for model in measured])
    forward = np.array([np.nan_to_num(abs(_middle(on_spine(model))), nan=math.inf) for model in measured])
    return limits(
        {
            "median |error| of the growth": (float(np.median(error)), "<=", 0.15),
            "share of families within 0.5 decades": (float((error <= 0.5).mean()), ">=", 0.9),
            "share inside the 90 % interval": (float(np.mean([model.growth.inside[0] for model in measured])), ">=", 0.9),
            "median |error| of the forward level on the spine": (float(np.median(forward)), "<=", 0.15),
            "share of families within 0.5 decades, forward": (float((forward <= 0.5).mean()), ">=", 0.9),
        }
    )


def report(models: Sequence[Compared], console: Console, failed: int) -> None:
    """Print the closing figures."""
    console.print(step_table(models))
    for library in dict.fromkeys(model.labels["library"] for model in models):
        mine = [model for model in models if model.labels["library"] == library]
        console.print(f"{len(mine)} families of {library}\n{growth_limits(mine)}\n", highlight=False)
    console.print("All families\n" + growth_limits(models), highlight=False)
    console.print("\nAll operators\n" + quality_limits(models, failed=failed, median=0.15, p95=0.5), highlight=False)


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, f"every {STEP}th family, one seed")
    options.add_argument("--only", nargs="+", metavar="NAME", help="these families alone (torchvision's are called tv:NAME)")
    options.add_argument("--library", choices=("transformers", "torchvision", "plain"), help="families of one library alone")
    options.add_argument("--seeds", type=int, help="inputs and cotangents that each is probed with, 3 by default")
    options.add_argument("--save", type=Path, metavar="FILE.jsonl", help="write one JSON line a family")
    asked = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    console, known = Console(width=150), targets()
    if importlib.util.find_spec("torchvision") is None:
        console.print(HOW_TO, style="yellow", highlight=False)
    if unknown := set(asked.only or ()) - set(known):
        options.error(f"no family named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = asked.only or every([name for name in known if name not in AS_SHIPPED], STEP if asked.quick else 1)
    chosen = [name for name in chosen if asked.library in {None, known[name][0]}]
    seeds = asked.seeds or (1 if asked.quick else 3)
    title = f"Growth from input to output, decades; out: beyond {QUANTILE} sd"
    rows = Rows("family:<30", "measured", "predicted", "error", "sd", "", "forward", *QUALITY, "ms", title=title)
    models, start = [], time.perf_counter()
    for name in chosen:
        if model := attempted(console, name, partial(examine, name, *known[name], seeds)):
            models.append(model)
            rows.add(*cells(model))
    save(asked.save, models)
    report(models, console, len(chosen) - len(models))
    console.print(f"{len(models)} of {len(chosen)} families compared, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
