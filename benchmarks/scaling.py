"""How an iteration grows with the tree: BranchGRPO of more children and more splits, DanceGRPO of as many images.

`python` this file. All of 20 steps, splits 3 apart from step 0, all steps but the last trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from common import Cost, alone, heading, iterated, parser, parts

STEPS, APART = 20, 3
PUBLISHED = 3500 / 680
"""Of 81 images: DanceGRPO over 3500 s, BranchGRPO 680 s (which only its Mix hybrid can have been, by its calls)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """K children at each of some splits."""

    factor: int
    splits: int

    @property
    def leaves(self) -> int:
        return self.factor**self.splits

    @property
    def arms(self) -> tuple[str, str, str]:
        """Return BranchGRPO, its Mix hybrid and DanceGRPO of as many images."""
        at = f"splits=[{','.join(str(APART * k) for k in range(self.splits))}],factor={self.factor}"
        return f"branch({at})", f"branch-mix({at})", "dance"


def measured(args: argparse.Namespace, arm: str, leaves: int) -> tuple[int, Cost]:
    """Return the nodes of an arm's tree, and what an iteration costs."""
    made = parts(args, arm, {"steps": STEPS, "group_size": leaves, "train_steps": "null"})
    plan = made.cell.algorithm.plan(made.cell.context(0, range(args.prompts), {}))
    return len(plan.tree) // args.prompts, iterated(made, args)


def line(arm: str, leaves: int, nodes: int, cost: Cost) -> str:
    """Return a line of the table."""
    seconds = "".join(f"{cost.seconds[name]:10.3f}" for name in ("rollout", "score", "update", "total"))
    calls = "".join(f"{cost.calls[name]:9d}" for name in ("rollout", "update"))
    peaks = "".join(f"{cost.peak[name] / 2**20:10.0f}" for name in ("rollout", "update"))
    return f"{arm.partition('(')[0]:11} {leaves:6} {nodes:6}{seconds}{calls}{peaks}"


def growth(nodes: Sequence[int], values: Sequence[float]) -> str:
    """Return the exponent of a power law and the straight line, each with its share of explained variance."""
    x, y = np.array(nodes, float), np.array(values, float)
    (slope, offset), (a, b) = np.polyfit(np.log(x), np.log(y), 1), np.polyfit(x, y, 1)
    power, straight = _explained(np.log(y), slope * np.log(x) + offset), _explained(y, a * x + b)
    return f"nodes^{slope:.2f} (R2 {power:.3f});  {1000 * a:.3f} ms a node + {b:.3f} s (R2 {straight:.3f})"


def _explained(y: np.ndarray, fitted: np.ndarray) -> float:
    return 1 - float(((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def trees(text: str) -> list[Tree]:
    """Return the trees of `2:3,2:4`: K and the number of splits."""
    pairs = [item.split(":") for item in text.split(",")]
    return [Tree(factor=int(factor), splits=int(splits)) for factor, splits in pairs]


def main() -> None:
    from torch.cuda import is_available

    flags = parser(__doc__)
    flags.add_argument("--trees", type=trees, default="2:3,2:4,2:5,3:4,4:4", help="K:splits,...")
    flags.set_defaults(prompts=2, repeats=5, device="cuda" if is_available() else "cpu")
    args = flags.parse_args()
    print(heading(args))
    print(f"{'':25}{'seconds':>30}{'calls':>24}{'peak MiB':>23}")
    names = ("rollout", "score", "update", "iteration")
    print(f"{'arm':11} {'leaves':>6} {'nodes':>6}{''.join(f'{name:>10}' for name in names)}", end="")
    print(f"{'rollout':>9}{'update':>9}{'rollout':>10}{'update':>10}")
    found: dict[tuple[str, int], tuple[int, Cost]] = {}
    for tree in args.trees:
        for arm in tree.arms:
            nodes, cost = found[arm.partition("(")[0], tree.leaves] = alone(measured, args, arm, tree.leaves)
            print(line(arm, tree.leaves, nodes, cost), flush=True)
    leaves = [tree.leaves for tree in args.trees]
    branch = [found["branch", count] for count in leaves]
    if len(branch) > 2:
        for name in ("rollout", "update", "total"):
            print(f"branch, {name}: {growth([n for n, _ in branch], [c.seconds[name] for _, c in branch])}")
    for count in leaves:
        dance = found["dance", count][1].seconds["total"]
        ratios = [f"{dance / found[arm, count][1].seconds['total']:.2f} x {arm}" for arm in ("branch", "branch-mix")]
        published = f"  (published: over {PUBLISHED:.1f} x)" if count == 81 else ""
        print(f"{count} images: dance takes {', '.join(ratios)}{published}")


if __name__ == "__main__":
    main()
