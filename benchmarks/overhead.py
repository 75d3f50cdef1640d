"""What the harness adds to an iteration: all that is not policy, VAE, reward or optimiser. `python` this file."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import heading, parser, parts

from bench.cost import Clock
from bench.loop import Parts, iterate, make_trainer
from bench.update import Trainer

WORK: tuple[str, ...] = ("forward", "backward", "optimiser", "decode", "reward")
"""What any implementation of the algorithm has to do."""


class Meter:
    """Seconds by kind of work."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = dict.fromkeys(WORK, 0.0)

    def timed(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, its seconds added to a kind."""

        def calling(*args: Any, **keywords: Any) -> Any:
            start = self.clock()
            try:
                return call(*args, **keywords)
            finally:
                self.seconds[kind] += self.clock() - start

        return calling

    def read(self) -> dict[str, float]:
        """Return the seconds since the last reading."""
        seconds, self.seconds = self.seconds, dict.fromkeys(WORK, 0.0)
        return seconds


def watched(made: Parts, meter: Meter) -> tuple[Parts, Trainer]:
    """Return the cell's objects with every call of the work's own parts timed."""
    trainer = make_trainer(made)
    made.policy.model.forward = meter.timed("forward", made.policy.model.forward)
    made.policy.decode = meter.timed("decode", made.policy.decode)
    trainer.accelerator.backward = meter.timed("backward", trainer.accelerator.backward)
    trainer.accelerator.clip_grad_norm_ = meter.timed("optimiser", trainer.accelerator.clip_grad_norm_)
    trainer.optimizer.step = meter.timed("optimiser", trainer.optimizer.step)
    rewards = {name: meter.timed("reward", reward) for name, reward in made.rewards.items()}
    return dataclasses.replace(made, rewards=rewards), trainer


def measure(arm: str, args: argparse.Namespace) -> str:
    """Return an arm's line of the table."""
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    meter, memory, rows = Meter(clock), {}, []
    made, trainer = watched(parts(args, arm), meter)
    for iteration in range(args.repeats + 1):
        start = clock()
        _, memory = iterate(made, trainer, iteration, memory, Clock())
        rows.append(meter.read() | {"total": clock() - start})
    middle = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    rest = statistics.median(1 - sum(row[name] for name in WORK) / row["total"] for row in rows[1:])
    shares = "".join(f"{100 * middle[name] / middle['total']:10.1f}%" for name in WORK)
    return f"{arm:10} {middle['total']:12.3f}{shares} {100 * rest:10.2f}%"


def main() -> None:
    args = parser(__doc__).parse_args()
    print(heading(args))
    print(f"{'arm':10} {'s/iteration':>12}{''.join(f'{name:>11}' for name in WORK)} {'harness':>11}")
    for arm in ("branch", "dance", "mix"):
        print(measure(arm, args), flush=True)


if __name__ == "__main__":
    main()
