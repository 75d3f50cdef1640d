"""Images or videos a second of each scorer, by batch size: a slow path shows as a ratio that does not grow.

    python benchmarks/scorers.py                                   # tiny weights of every scorer
    python benchmarks/scorers.py --scorer hpsv2.1 --weights DIR --side 720 --device cuda

On tiny weights the time is preprocessing and what a call costs; on real ones it is the model's. Every run has images
of its own, as scorers remember what they have answered.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from bench.registry import load
from bench.scorers import tiny
from bench.scorers.lookup import looked_at, ready

FRAMES = 8
TINY = {"aesthetic-linear": "aesthetic", "unifiedreward-video": "unifiedreward"}
"""Scorer -> the tiny one whose files it reads too."""
OPTIONS = {"unifiedreward": "max_tokens=8", "unifiedreward-video": "max_tokens=8"}
"""Random weights would speak to the end."""
RULES = ("jpeg-compressibility", "jpeg-incompressibility")
"""Scorers without weights, and so without batches."""


def runs(scorer: Any, count: int, side: int, device: str) -> Iterator[torch.Tensor]:
    """Yield images, or videos, no two of which are alike."""
    shape = (count, *((FRAMES,) if scorer.info.media == "video" else ()), 3, side, side)
    for start in range(0, 10**9, 7):  # of rows that differ, as 251 is prime
        yield ((torch.arange(math.prod(shape)) + start) % 251 / 250).reshape(shape).to(device)


def seconds(scorer: Any, args: argparse.Namespace) -> float:
    """Return the median of some runs, after one to warm up."""
    group, found = np.arange(args.count), []
    prompts = [f"picture number {at} of a cat" for at in range(args.count)]
    images = runs(scorer, args.count, args.side, args.device)
    for _ in range(args.repeats + 1):
        ours = next(images)
        began = time.perf_counter()
        scorer(ours, prompts, group)
        if args.device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def written(name: str, weights: str, batch: int) -> str:
    """Return a scorer as a user writes it."""
    options = [] if name in RULES else [f"weights={weights}", f"batch={batch}"]
    return f"{name}({','.join([*options, *([OPTIONS[name]] if name in OPTIONS else [])])})"


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", action="append", help="may be repeated; default: all but remote ones")
    parser.add_argument("--weights", help="a folder of real ones, of one scorer (default: tiny, made on the spot)")
    parser.add_argument("--batches", default="1,4,16", help="default: 1,4,16")
    parser.add_argument("--count", type=int, default=16, help="images of a run (default: 16)")
    parser.add_argument("--side", type=int, default=64, help="of the images, pixels (default: 64)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batches = [int(part) for part in args.batches.split(",")]
    print("| scorer | " + " | ".join(f"{batch} a call" for batch in batches) + " | faster |")
    print("|---|" + "---:|" * (len(batches) + 1))
    for name in args.scorer or [*tiny.MAKERS, *TINY, *RULES]:
        with TemporaryDirectory() as place:
            if not args.weights and name not in RULES:
                tiny.make(TINY.get(name, name), Path(place))
            scorers = [ready(looked_at(written(name, args.weights or place, b), load("rewards"))) for b in batches]
            rates = [args.count / seconds(scorer, args) for scorer in scorers]
            faster = "" if name in RULES else f"{max(rates) / rates[0]:.2g} ×"
            print(f"| `{name}` | " + " | ".join(f"{rate:,.0f}/s" for rate in rates) + f" | {faster} |", flush=True)


if __name__ == "__main__":
    main()
