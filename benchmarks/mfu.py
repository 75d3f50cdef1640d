"""How much of the machine's matrix rate a rollout and an update use: `python` this file.

The rate is measured, of square matrices in the precision that the forwards run in. The work is the model's alone: a
rollout call is a forward, a call of an update a forward and a backward of twice its operations; calls of other policies
in an update are forwards.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping

import torch
from common import Cost, alone, clock_of, forward_flops, heading, iterated, parser, parts


def rate(size: int, dtype: torch.dtype, device: str, repeats: int, now: Callable[[], float]) -> float:
    """Return operations a second in the product of two square matrices, the median after one to warm up."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    product = torch.empty_like(a)
    times = max(1, 2 * 10**9 // (2 * size**3))  # long enough to be timed
    seconds = []
    for _ in range(repeats + 1):
        start = now()
        for _ in range(times):
            torch.matmul(a, a, out=product)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((now() - start) / times)
    return 2 * size**3 / statistics.median(seconds[1:])


def rates(args: argparse.Namespace) -> dict[str, float]:
    """Print the rate of each size and precision; return the best by precision."""
    best = {}
    torch.set_num_threads(args.threads)
    print(f"{'matrices, GFLOP/s':20}{''.join(f'{size:>10}' for size in args.sizes)}")
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found = [rate(size, dtype, args.device, max(5, args.repeats), clock_of(args)) for size in args.sizes]
        print(f"{name:20}{''.join(f'{value / 1e9:10.1f}' for value in found)}", flush=True)
        best[name] = max(found)
    return best


def measured(args: argparse.Namespace, arm: str) -> tuple[float, Cost]:
    """Return the operations of a forward of one row, and what an iteration costs."""
    made = parts(args, arm, {"precision": args.precision})
    return forward_flops(made), iterated(made, args)


def forwards(calls: Mapping[str, int]) -> dict[str, int]:
    """Return the forwards that each phase's calls are worth."""
    others = sum(count for name, count in calls.items() if name not in ("rollout", "update"))
    return {"rollout": calls["rollout"], "update": 3 * calls["update"] + others}


def line(arm: str, flops: float, cost: Cost, best: float) -> str:
    """Return a line of the table."""
    said = ""
    for phase, count in forwards(cost.calls).items():
        done, seconds = count * flops, cost.seconds[phase]
        peak = cost.peak[phase] / 2**20
        said += f"{done / 1e9:10.1f}{seconds:9.3f}{100 * done / seconds / best:8.1f}%{peak:9.0f}"
    return f"{arm:10}{said}"


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--arms", type=lambda text: text.split(","), default=["branch", "dance", "mix"])
    flags.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[256, 512, 1024, 2048])
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    flags.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    args = flags.parse_args()
    print(heading(args))
    best = rates(args)[args.precision]
    print(f"\n{'':10}{'rollout':>20}{'update':>37}")
    columns = f"{'GFLOP':>10}{'s':>9}{'MFU':>9}{'MiB':>9}"
    print(f"{'arm':10}{columns}{columns}")
    for arm in args.arms:
        flops, cost = alone(measured, args, arm)
        print(line(arm, flops, cost, best), flush=True)


if __name__ == "__main__":
    main()
