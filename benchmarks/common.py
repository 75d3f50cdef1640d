"""What the benchmarks share: a cell of the quick preset with all its objects, and medians of interleaved runs."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.loop import Parts

# Threads that spin while they wait lose many times their gain as soon as another process wants the core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the flags that all benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", default="tiny-flux", help="a registered name, or a folder (default: tiny-flux)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, as a worker has)")
    made.add_argument("--repeats", type=int, default=7, help="timed runs of each side, after one to warm up")
    made.add_argument("--prompts", type=int, default=8, help="prompts an iteration (default: 8, as quick has)")
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others use")
    return made


def parts(args: argparse.Namespace, arm: str) -> Parts:
    """Return the objects of a cell of the quick preset, without evaluation."""
    import torch
    from transformers.utils import logging

    from bench.arguments import make_suite, run_parser
    from bench.registry import load
    from bench.worker import Worker

    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    settings = {"prompts_per_iteration": args.prompts, "resolution": 32, "eval_rewards": "[soft]"}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    named = ["--model", args.model, "--rewards", "soft", "--prompts", "world", "--preset", "quick"]
    suite = make_suite(run_parser().parse_args(["--algos", arm, *named, *words]))
    worker = Worker(suite=Path(), device=torch.device("cpu"))
    return worker.parts(suite.cells[0], load("rewards"), worker.policy(suite.shared))


def interleaved(
    sides: Mapping[str, Callable[[], Any]], args: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median seconds of each side, and what its last run returned; A, B, A, B, ... after one warm-up."""
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, Any] = {name: run() for name, run in sides.items()}
    for _ in range(args.repeats):
        for name, run in sides.items():
            start = clock()
            said[name] = run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, said


def heading(args: argparse.Namespace) -> str:
    """Return the conditions of a measurement."""
    import torch

    from bench.environment import environment

    found = environment("cpu", args.threads)
    return (
        f"{args.model}, {args.prompts} prompts, {args.threads} of {found['cores']} cores, median of {args.repeats}, "
        f"{args.clock} clock; Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {found['packages']['diffusers']}"
    )
