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


def test_full_size_costs_are_counted_on_a_model_of_any_size(random_wan):
    sizes = ["--set", "resolution=16", "--set", "frames=5", "--set", "guidance=3.0", "--set", "lora_rank=2"]
    few = ["--group", "4", "--steps", "4", "--set", "branch.splits=[0,1]", "--set", "mix.window=2"]
    words = ["--smoke", "--device", "cpu", "--model", str(random_wan), "--set", "model.weights=random", *sizes, *few]
    command = [sys.executable, str(BENCHMARKS / "full_size.py"), "--arms", "dance,branch", *words]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    dance, branch = (line.split() for line in lines[-2:])
    # Two forwards a call, for guidance. Of 4 steps the last is not trained; siblings share the parents' calls.
    assert (dance[0], dance[1], dance[6]) == ("dance", str(2 * (1 + 3 * 4)), str(2 * (1 + 2 * 4)))
    assert (branch[0], branch[1], branch[6]) == ("branch", str(2 * (1 + 2 + 4 + 4)), str(2 * (1 + 2 + 4)))
    assert dance[-2:] == ["1.00", "x"]
    assert float(dance[-3]) / float(branch[-3]) == pytest.approx(float(branch[-2]), abs=0.02)
    gflop = next(float(line.split()[-4]) for line in lines if line.endswith("GFLOP a forward"))
    rate = next(float(line.split()[3]) for line in lines if line.startswith("matrices in bf16"))
    for calls, seconds, share in (dance[1:4], branch[1:4]):
        wanted = 100 * gflop * 1e9 * int(calls) / float(seconds) / (rate * 1e12)
        assert float(share.rstrip("%")) == pytest.approx(wanted, abs=0.06)
