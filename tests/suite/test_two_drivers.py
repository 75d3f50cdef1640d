"""Two people start the same suite: every cell is trained once, and both are told how it ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import arguments

from bench.record import read_suite

pytestmark = pytest.mark.slow
ARM = """
import os, sys
from algorithms.dance import Dance


class Loud(Dance):
    \"\"\"Says of every iteration that it trained it.\"\"\"

    def remember(self, plan, outcomes, ctx):
        if "bench.loop" in sys.modules:  # a preview asks what would be remembered
            with open("trained.txt", "a") as log:
                log.write(f"{ctx.seed} {ctx.iteration} {os.getppid()}\\n")
        return {}


ARMS = {"loud": Loud(tf=1.0)}
"""
SEEDS, ITERATIONS = (0, 1, 2, 3), 3


def test_two_drivers_on_one_suite_train_every_cell_once_and_both_report_it(random_flux: Path, tmp_path: Path):
    (tmp_path / "loud_arm.py").write_text(ARM)
    words = ["--seeds", ",".join(map(str, SEEDS)), "--plugin", "loud_arm.py", "--jobs", "1"]
    command = [
        sys.executable,
        "-m",
        "bench.run",
        *arguments(random_flux, "loud", words=words, changes={"iterations": ITERATIONS}),
    ]

    drivers = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [driver.communicate(timeout=300)[0] for driver in drivers]

    assert [driver.returncode for driver in drivers] == [0, 0], said
    trained = [line.split() for line in (tmp_path / "trained.txt").read_text().splitlines()]
    wanted = [(str(seed), str(iteration)) for seed in SEEDS for iteration in range(ITERATIONS)]
    assert sorted((seed, iteration) for seed, iteration, _ in trained) == wanted
    assert {int(driver) for *_, driver in trained} == {driver.pid for driver in drivers}  # both had a share
    done = [cell.result for cell in read_suite(tmp_path / "runs" / "tiny").cells]
    assert [result["iterations"] for result in done if result is not None] == [ITERATIONS] * len(SEEDS)
    assert said[0].splitlines()[-2:] == said[1].splitlines()[-2:]
    assert said[0].splitlines()[-1].startswith("report: ")
