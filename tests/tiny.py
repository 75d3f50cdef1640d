"""Suites that run in a second, and the processes that run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.arguments import make_suite, run_parser
from bench.policy import Build
from bench.suite import Suite, write

TINY = {
    "resolution": 32,
    "steps": 5,
    "group_size": 4,
    "prompts_per_iteration": 2,
    "iterations": 5,
    "checkpoint_every": 2,
    "train_steps": "[0,1,2]",
    "lr": "1e-3",
    "eval_prompts": 3,
    "eval_samples": 2,
    "eval_steps": 2,
    "eval_rewards": "[soft,graded]",
    "branch.splits": "[0,1]",
    "mix.window": 2,
}
"""A suite that runs in a second: settings of --set."""


def square(side: int, *, guidance: float = 3.5, frames: int = 1, **how: Any) -> Build:
    """Return how a model for images of this side is built, on the CPU."""
    return Build(height=side, width=side, frames=frames, guidance=guidance, device=torch.device("cpu"), **how)


def arguments(
    model: Path, algos: str, rewards: str = "soft", words: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the words of `bench run` for a tiny suite."""
    settings = [word for key, value in (TINY | dict(changes or {})).items() for word in ("--set", f"{key}={value}")]
    given = ["--model", str(model), "--prompts", "world", "--rewards", rewards, "--suite", "tiny", "--preset", "smoke"]
    return ["--algos", algos, *given, *settings, *words]


def written(words: Sequence[str], out: Path) -> Suite:
    suite = make_suite(run_parser().parse_args([*words, "--out", str(out)]))
    write(suite)
    return suite


def job(suite: Suite, **how: Any) -> dict[str, Any]:
    """Return what tests/zygote.py runs."""
    return {"suite": str(suite.folder.resolve()), "cells": [cell.folder for cell in suite.cells], **how}


class Zygote:
    """A process that has imported everything, and forks workers (tests/zygote.py)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, *jobs: Mapping[str, Any]) -> list[list[int]]:
        """Run workers; return their exit codes by job."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(jobs), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def facts(suite: Suite, cell: int = 0) -> dict[str, Any]:
    """Return what a cell's record says, less what a clock or the machine's memory decides."""
    found = record.read_cell(suite.folder / suite.cells[cell].folder)
    assert found.result is not None
    clock = ("seconds", "seconds_per_iteration", "peak_memory_bytes")
    rows = [{key: value for key, value in row.items() if key not in clock} for row in found.rows]
    result = {key: value for key, value in found.result.items() if key not in clock}
    weights = next((found.folder / "pipeline" / "transformer").glob("*.safetensors")).read_bytes()
    return {"rows": rows, "result": result, "weights": weights}
