"""The page of the algorithms is what the code says, and the code says all of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bench.describe import COMMON, field_docs, in_tree, meaning, prose, written
from bench.registry import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "algorithms.md"
REMEDY = "docs/algorithms.md is out of date: run `python -m bench.describe docs/algorithms.md`"
ALGORITHMS = in_tree()
CLASSES = list(dict.fromkeys(map(type, ALGORITHMS.values.values())))


@pytest.mark.slow
def test_the_page_is_what_the_code_generates(tmp_path: Path):
    # A process of its own plans at full speed: here the shape of every array would be checked.
    subprocess.run([sys.executable, "-m", "bench.describe", tmp_path / "page.md"], cwd=ROOT, check=True)
    assert PAGE.read_text(encoding="utf-8") == (tmp_path / "page.md").read_text(encoding="utf-8"), REMEDY


@pytest.mark.parametrize("arm", ALGORITHMS.values)
def test_every_arm_has_its_command_and_a_row(arm):
    text = PAGE.read_text(encoding="utf-8")
    assert f"\nbench run --algos {arm}\n" in text, REMEDY
    assert f"\n| `{arm}` |" in text, REMEDY


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_meaning(kind):
    assert [f.name for f in fields(kind) if not meaning(kind, f.name)] == []


def test_no_common_meaning_is_left_over():
    bare = {f.name for kind in CLASSES for f in fields(kind) if f.name not in field_docs(kind)}
    assert COMMON.keys() - bare == set()


def test_an_algorithm_that_does_not_load_stops_the_page(monkeypatch):
    monkeypatch.setitem(sys.modules, "algorithms.dance", None)
    with pytest.raises(InputError, match=r"algorithms\.dance"):
        in_tree()


def test_values_are_written_as_the_command_line_reads_them():
    values = [True, None, (0, 3), 1e-4, 2e-6, float("inf"), 5.0, "dense"]
    assert [*map(written, values)] == ["true", "null", "[0,3]", "0.0001", "2e-6", ".inf", "5", "dense"]


def test_markdown_sees_no_markup_in_a_docstring():
    assert prose("a*b of p(y | x), `c*d`") == "a\\*b of p(y \\| x), `c*d`"
    assert prose("of arXiv 2505.07818") == "of [arXiv 2505.07818](https://arxiv.org/abs/2505.07818)"
