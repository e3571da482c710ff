"""Plots: every kind of picture, and reports with nothing to draw."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from modelfiles import weights

from modelfs.compression.plot import SUFFIXES, check_plot, draw
from modelfs.errors import BadInput
from modelfs.transforms import Affine, Cluster, Comparison, TensorReport, Transform, left_alone, transform_array

BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def report(name: str, method: Transform) -> TensorReport:
    before = weights(64, 128)
    result, comparison = transform_array(method, before), Comparison()
    comparison.add(before, result.values)
    return comparison.report(name, "F32", before.shape, method.name, result.bits)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_kind_of_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix.upper()}"
    check_plot(path)
    draw([report("a", Affine(8)), left_alone("norm", "F32", (9,), 32, "why"), report("b", Cluster(4))], "title", path)
    assert path.read_bytes().startswith(BEGINNINGS[suffix])


def test_a_picture_has_the_title_and_each_method_in_its_legend(tmp_path: Path) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw([report("a", Affine(8)), report("b", Affine(8)), report("c", Cluster(4))], "small <model>",
             tmp_path / "p.svg")
    texts = ["".join(each.itertext()) for each in ElementTree.parse(tmp_path / "p.svg").iter()
             if each.tag.endswith("}text")]
    assert {"small <model>", "int8", "k-means 16", "bits a weight (area: weights)"} <= set(texts)


def test_a_report_of_which_nothing_changed_is_a_picture_too(tmp_path: Path) -> None:
    comparison = Comparison()
    comparison.add(np.zeros(9), np.zeros(9))
    draw([left_alone("n", "I64", (0,), 64, "dtype I64"), comparison.report("zeros", "F64", (9,), "prune 0.5", 17)],
         "nothing", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(BEGINNINGS[".png"])


def test_a_name_that_is_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"not a picture's name.*allowed: \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "p.jpg")
