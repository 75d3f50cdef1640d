"""The cost benchmarks run; how fast is no test's business."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = ["--prompts", "1", "--repeats", "1", "--device", "cpu"]


def said(name: str, *words: str) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / name), *SMALL, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_scaling_counts_the_nodes_and_calls_of_every_tree():
    lines = said("scaling.py", "--trees", "2:1")

    rows = {cells[0]: cells[1:] for cells in map(str.split, lines) if cells[0] in ("branch", "branch-mix", "dance")}
    # Two leaves: a root and two chains of 20. The last step is never trained, and both share the first's parent.
    assert {arm: (cells[:2], cells[6:8]) for arm, cells in rows.items()} == {
        "branch": (["2", "41"], ["39", "37"]),
        "branch-mix": (["2", "41"], ["39", "7"]),
        "dance": (["2", "41"], ["39", "37"]),
    }
    assert re.fullmatch(r"2 images: dance takes \d+\.\d\d x branch, \d+\.\d\d x branch-mix", lines[-1])


def test_utilisation_is_a_share_of_the_rate_measured_beside_it():
    lines = said("mfu.py", "--arms", "branch", "--sizes", "64")

    rate = next(float(line.split()[1]) for line in lines if line.startswith("fp32"))
    work, seconds, share = (float(cell.rstrip("%")) for cell in lines[-1].split()[1:4])
    assert share == pytest.approx(100 * work / seconds / rate, rel=0.1)
    assert 0 < share < 1000
