"""A picture of a run's report: how far each tensor's weights moved, for the bits that they have now.

Rule: matplotlib is loaded only here, and only when a picture is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from modelfs.errors import BadInput
from modelfs.transforms import TensorReport
from modelfs.transforms.report import LEFT_ALONE

SUFFIXES = (".png", ".svg", ".pdf")
_LEAST_AREA, _MOST_AREA = 12.0, 240.0


def check_plot(path: Path) -> None:
    """Before hours of work. Raises BadInput where the picture could not be drawn."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput("not a picture's name", where=str(path), why=f"allowed: {', '.join(SUFFIXES)}")
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise BadInput("cannot draw a plot", why="the package matplotlib is not installed",
                       advice="pip install 'modelfs[plot]'.") from error


def draw(tensors: Sequence[TensorReport], title: str, path: Path) -> None:
    """Left: error against bits, an area for the number of weights. Right: the error along the model. Raises OSError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_bits, along = figure.subplots(1, 2, sharey=True)
    changed = [(index, each) for index, each in enumerate(tensors)
               if not each.method.startswith(LEFT_ALONE) and each.rms_error and each.signal]
    largest = max((each.elements for _, each in changed), default=1) or 1
    for method in dict.fromkeys(each.method for _, each in changed):
        chosen = [(index, each) for index, each in changed if each.method == method]
        errors = [(each.rms_error or 0.0) / (each.signal or 1.0) for _, each in chosen]
        areas = [_LEAST_AREA + (_MOST_AREA - _LEAST_AREA) * each.elements / largest for _, each in chosen]
        by_bits.scatter([each.bits for _, each in chosen], errors, s=areas, alpha=0.5, label=method)
        along.plot([index for index, _ in chosen], errors, ".", label=method)
    if changed:
        by_bits.set_yscale("log")
        by_bits.legend()
    by_bits.set_xlim(left=0)
    by_bits.set_xlabel("bits a weight (area: weights)")
    by_bits.set_ylabel("RMS error / RMS of the weights")
    along.set_xlabel("tensor, in the model's order")
    for axes in (by_bits, along):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path)
