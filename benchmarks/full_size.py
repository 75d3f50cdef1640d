"""What iterations cost on models of full size, which may be of random weights: `python` this file --model flux-dev
--set model.weights=random.

Adapters are trained, as the preset `lora` has it; a reward that costs nothing takes a scorer's place. Every arm has a
process of its own. Shares are of the model's work alone: a call of the rollout is a forward; one of an update is two
of them where adapters are trained (frozen weights need no gradient), three where the whole model is. Activations that
are computed again are no work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import Cost, alone, clock_of, forward_flops, iterated
from mfu import rate

from bench.arguments import make_suite, run_parser
from bench.embedded import world
from bench.environment import environment
from bench.loop import Parts
from bench.models.source import described
from bench.registry import load
from bench.worker import Worker

REWARD = Path(__file__).with_name("brightness.py")
H200 = 989e12
"""Operations a second of an H200 SXM in bf16, dense, by its data sheet."""
GROUPS = 64
"""Prompts of a set with first frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an arm's iterations cost."""

    cost: Cost
    flops: float
    """Of a forward of one row."""
    passes: int
    """Forwards that a call of an update is worth."""
    parameters: int
    size: str

    def work(self) -> Mapping[str, float]:
        """Return the operations of rollout and update."""
        calls, named = self.cost.calls, ("rollout", "update")
        others = sum(count for name, count in calls.items() if name not in named)
        forwards = {"rollout": calls["rollout"], "update": self.passes * calls["update"] + others}
        return {phase: count * self.flops for phase, count in forwards.items()}


def parts(args: argparse.Namespace, arm: str, folder: Path) -> Parts:
    """Return the objects of a cell; `folder` is for what it writes."""
    os.environ["ARBOR_CACHE"] = str(folder / "cache")  # random encodings are of no use to anyone else
    torch.set_num_threads(args.threads)
    family = described(args.model).family
    reward = f"brightness-{family.media}"
    settings = {
        "prompts_per_iteration": args.prompts,
        "group_size": args.group,
        "steps": args.steps,
        "updates_per_iteration": 1,
        "iterations": args.repeats + 1,
        "eval_rewards": f"[{reward}]",
    }
    set_ = [word for item in (*(f"{k}={v}" for k, v in settings.items()), *args.settings) for word in ("--set", item)]
    prompts = pictured(folder) if family.first_frame else "world"
    named = ["--model", args.model, "--prompts", prompts, "--rewards", reward, "--plugin", str(REWARD)]
    suite = make_suite(run_parser().parse_args(["--algos", arm, "--preset", "lora", *named, *set_]))
    worker, cell = Worker(suite=folder, device=torch.device(args.device)), suite.cells[0]
    return worker.parts(cell, load("rewards", [REWARD]), worker.trainable(cell))


def pictured(folder: Path) -> str:
    """Write prompts with a first frame each; return their file."""
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 120, 60)).save(folder / "frame.png")
    lines = [json.dumps({"prompt": prompt, "image": "frame.png"}) for prompt in world.prompts("train")[:GROUPS]]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "prompts.jsonl")


def measured(args: argparse.Namespace, arm: str) -> Measured:
    """Return what an arm's iterations cost."""
    with TemporaryDirectory() as folder:
        made = parts(args, arm, Path(folder))
        shared = made.cell.shared
        return Measured(
            cost=iterated(made, args),
            flops=forward_flops(made),
            passes=2 if shared.lora_rank else 3,
            parameters=sum(p.numel() for p in made.policy.model.parameters()),
            size=f"{shared.width} x {shared.height}{f' x {shared.frames}' if shared.frames > 1 else ''}",
        )


def line(arm: str, found: Measured, best: float, first: float) -> str:
    """Return an arm's line of the table; `first` is the first arm's iteration."""
    cost, said = found.cost, ""
    for phase, work in found.work().items():
        seconds, peak = cost.seconds[phase], (cost.floor + cost.peak[phase]) / 2**30
        share = work / seconds
        said += f"{cost.calls[phase]:7}{seconds:10.3f}{100 * share / best:7.1f}%{100 * share / H200:7.1f}%{peak:8.2f}"
    seconds = cost.seconds["total"]
    return f"{arm.partition('(')[0]:11}{said}{cost.seconds['score']:10.3f}{seconds:11.3f}{first / seconds:8.2f} x"


def heading(args: argparse.Namespace) -> str:
    """Return the conditions of a measurement."""
    found = environment(args.device, args.threads)
    device = torch.cuda.get_device_name() if args.device == "cuda" else found["cpu"]
    count = "one timed run" if args.smoke else f"median of {args.repeats}"
    return (
        f"{args.model}, {' '.join(args.settings)}\n{device}, {args.threads} of {found['cores']} cores; "
        f"{args.prompts} prompts x {args.group}, {args.steps} steps; {count} after one to warm up; "
        f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {found['packages']['diffusers']}"
    )


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__)
    add = made.add_argument
    add("--model", default="flux-dev", help="a registered name, or a folder (default: flux-dev)")
    add("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="as of bench run")
    add("--arms", default="dance,mix,branch,branch-mix", help="the first is what others are compared with")
    add("--prompts", type=int, default=1, help="of an iteration (default: 1)")
    add("--group", type=int, default=16, help="images a prompt (default: 16)")
    add("--steps", type=int, default=20)
    add("--repeats", type=int, default=5, help="timed iterations, after one to warm up (default: 5)")
    add("--smoke", action="store_true", help="one timed iteration: does it run?")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others use")
    return made


def main() -> None:
    args = flags().parse_args()
    if args.smoke:
        args.repeats = 1
    if args.repeats < 5 and not args.smoke:
        raise SystemExit("--repeats is 5 or more; --smoke runs one, to see that it does")
    print(heading(args))
    sizes = (4096, 8192) if args.device == "cuda" else (512, 1024)
    best = max(rate(size, torch.bfloat16, args.device, 5, clock_of(args)) for size in sizes)
    print(f"matrices in bf16: {best / 1e12:.3f} TFLOP/s measured; an H200's data sheet: {H200 / 1e12:.0f}", flush=True)
    columns = f"{'calls':>7}{'s':>10}{'MFU':>8}{'H200':>8}{'GiB':>8}"
    first = 0.0
    for number, arm in enumerate(args.arms.split(",")):
        found = alone(measured, args, arm)
        if number == 0:
            first = found.cost.seconds["total"]
            print(f"{found.size}, {found.parameters / 1e6:.3f} M parameters, {found.flops / 1e9:.4f} GFLOP a forward\n")
            print(f"{'':11}{'rollout':>41}{'update':>41}\n{'arm':11}{columns}{columns}", end="")
            print(f"{'score, s':>10}{'total, s':>11}{'faster':>10}")
        print(line(arm, found, best, first), flush=True)


if __name__ == "__main__":
    main()
