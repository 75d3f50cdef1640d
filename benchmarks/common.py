"""What the benchmarks share: a cell of the quick preset with all its objects, and medians of runs."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cost import Clock

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
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others use")
    return made


def parts(args: argparse.Namespace, arm: str, changes: Mapping[str, object] | None = None) -> Parts:
    """Return the objects of a cell of the quick preset, without evaluation; `changes` are settings of --set."""
    import torch
    from transformers.utils import logging

    from bench.arguments import make_suite, run_parser
    from bench.registry import load
    from bench.worker import Worker

    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    settings = {"prompts_per_iteration": args.prompts, "resolution": 32, "eval_rewards": "[soft]"}
    settings |= dict(changes or {})
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    named = ["--model", args.model, "--rewards", "soft", "--prompts", "world", "--preset", "quick"]
    suite = make_suite(run_parser().parse_args(["--algos", arm, *named, *words]))
    worker = Worker(suite=Path(), device=torch.device(args.device))
    return worker.parts(suite.cells[0], load("rewards"), worker.policy(suite.shared))


@dataclass(slots=True)
class Metered(Clock):
    """A clock that also reads, of every phase, the peak of the memory."""

    now: Callable[[], float] = time.perf_counter
    forget: Callable[[], None] = lambda: None
    peak: Callable[[], int] = lambda: 0
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.forget()
        self.synchronize()
        start = self.now()
        try:
            yield
        finally:
            self.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
            self.peaks[name] = self.peak()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of an iteration: medians."""

    seconds: Mapping[str, float]
    """By phase, and `total`."""
    peak: Mapping[str, int]
    """Bytes by phase, above what was taken before the first iteration."""
    floor: int
    """Bytes that were taken then."""
    calls: Mapping[str, int]


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """Return the clock that was chosen."""
    return time.perf_counter if args.clock == "wall" else time.process_time


def iterated(made: Parts, args: argparse.Namespace) -> Cost:
    """Return what an iteration costs, the first left out as warm-up."""
    from functools import partial

    import torch

    from bench.loop import forget_peak, iterate, make_trainer, peak_bytes

    device, trainer, memory, now = made.policy.device, make_trainer(made), {}, clock_of(args)
    forget_peak(device)
    floor, seconds, peaks, calls = peak_bytes(device), [], [], []
    for iteration in range(args.repeats + 1):
        clock = Metered(now=now, forget=partial(forget_peak, device), peak=partial(peak_bytes, device))
        if device.type == "cuda":
            clock.synchronize = torch.cuda.synchronize
        start = now()
        row, memory = iterate(made, trainer, iteration, memory, clock)
        seconds.append(row["seconds"] | {"total": now() - start})
        peaks.append({name: bytes_ - floor for name, bytes_ in clock.peaks.items()})
        calls.append(row["calls"])
    return Cost(seconds=medians(seconds[1:]), peak=medians(peaks[1:]), floor=floor, calls=medians(calls[1:]))


def forward_flops(made: Parts) -> float:
    """Return the operations of a forward of one row."""
    import torch

    from bench.cost import flops_per_call
    from bench.data import of_iteration

    # Only prompts that iterations see are encoded.
    first, *_ = of_iteration(made.prompts, made.cell.seed, 0, made.cell.shared.prompts_per_iteration)
    return flops_per_call(made.policy, made.condition.rows(torch.tensor([first])))


def medians(rows: Any) -> dict[str, Any]:
    """Return the median of each entry of dictionaries."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def alone(measure: Callable[..., Any], *values: Any) -> Any:
    """Return what a function returns in a process of its own: what ran before it leaves no memory behind."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *values).result()


def interleaved(
    sides: Mapping[str, Callable[[], Any]], args: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median seconds of each side, and what its last run returned; A, B, A, B, ... after one warm-up."""
    clock = clock_of(args)
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

    found = environment(args.device, args.threads)
    device = torch.cuda.get_device_name() if args.device == "cuda" else found["cpu"]
    return (
        f"{args.model}, {args.prompts} prompts, {device}, {args.threads} of {found['cores']} cores, "
        f"median of {args.repeats}, "
        f"{args.clock} clock; Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {found['packages']['diffusers']}"
    )
