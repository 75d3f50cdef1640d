"""Where a rollout branches and where it is stochastic, decided before the first model call.

Dance, Mix, Branch and their relatives differ here by values, not by code: chains, a star of roots, a fan-out at one
step, splits with coupled noise, a stochastic window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from bench.schedule import respaced
from bench.tree import Tree, forest, grow, of_slots

if TYPE_CHECKING:
    from bench.contract import Context

KERNELS = ("dance_sde", "flow_sde", "cps", "ode")
SOLVERS = ("euler", "dpm2m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The only place that says where noise is; later stages read it and never recompute it."""

    tree: Tree
    sigmas: Float[np.ndarray, " knot"]
    kernel: str
    """Of the stochastic edges, one of `KERNELS`."""
    solver: tuple[str, ...]
    """Of the ODE edges of each step, one of `SOLVERS`."""
    noise_level: Float[np.ndarray, " node"]
    """Of the incoming edge: eta or a of the papers; 0 is an ODE edge."""
    coupling: Float[np.ndarray, " node"]
    """Correlation of a node's noise with its siblings' (for roots, with the slot's other roots), in [0, 1]."""
    noise_scale: Float[np.ndarray, " node"]
    """Std that is sampled over std that is scored: 1, but for official code that differs."""
    policy: Literal["live", "old"] = "live"
    """Who samples; "old" for an algorithm that needs that policy (`Algorithm.needs`)."""

    def __post_init__(self) -> None:
        check_lengths(self)
        check_grid(self)
        check_edges(self)

    @property
    def steps(self) -> int:
        """Return the number of denoising steps T."""
        return len(self.sigmas) - 1

    def stochastic_steps(self) -> set[int]:
        """Return the steps at which some edge has noise: those that can be trained as transitions."""
        return set((self.tree.depth[self.noise_level > 0] - 1).tolist())

    def part(self, slots: Int[np.ndarray, " some"]) -> tuple[Plan, Int[np.ndarray, " part"]]:
        """Return the plan of some slots, whose numbers stay, and the place of each of its nodes in this one."""
        tree, node = of_slots(self.tree, slots)
        per_node = {name: getattr(self, name)[node] for name in ("noise_level", "coupling", "noise_scale")}
        return replace(self, tree=tree, **per_node), node

    def std(self) -> Float[np.ndarray, " node"]:
        """Return the std of the noise of each node's incoming edge, over the full step, as `bench.kernel` has it."""
        return noise_std(self.kernel, self.sigmas, np.maximum(self.tree.depth, 1) - 1, self.noise_level)


def noise_std(
    kernel: str, sigmas: Float[np.ndarray, " knot"], step: Int[np.ndarray, " n"], noise_level: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the std of a kernel's noise over whole steps: the s of `bench.kernel`'s table, before any tensor."""
    before, after = sigmas[step], sigmas[step + 1]
    if kernel == "cps":
        return after * np.sin(noise_level * (np.pi / 2))
    if kernel == "flow_sde":
        below_one = np.where(before == 1, sigmas[1], before)
        return noise_level * np.sqrt((before - after) * before / (1 - below_one))
    return noise_level * np.sqrt(before - after)


def check_lengths(plan: Plan) -> None:
    """Raise ValueError unless every array of the plan has one entry a node."""
    for name in ("noise_level", "coupling", "noise_scale"):
        if len(getattr(plan, name)) != len(plan.tree):
            raise ValueError(f"{name} has {len(getattr(plan, name))} entries for {len(plan.tree)} nodes")


def check_grid(plan: Plan) -> None:
    """Raise ValueError unless the grid falls to 0 and kernel and solvers are known."""
    if plan.sigmas[-1] != 0 or plan.sigmas[0] > 1 or (np.diff(plan.sigmas) >= 0).any():
        raise ValueError("sigmas must fall strictly, from at most 1 to exactly 0")
    if plan.kernel not in KERNELS:
        raise ValueError(f"unknown kernel {plan.kernel!r}; known: {', '.join(KERNELS)}")
    if len(plan.solver) != plan.steps or not set(plan.solver) <= set(SOLVERS):
        raise ValueError(f"solver must name one of {', '.join(SOLVERS)} for each of the {plan.steps} steps")
    if plan.tree.steps != plan.steps or (plan.tree.depth[plan.tree.leaves()] != plan.steps).any():
        raise ValueError(f"every leaf must stand at depth {plan.steps}, the end of the sigma grid")


def check_edges(plan: Plan) -> None:
    """Raise ValueError for noise where there can be none, or none where siblings need it."""
    tree, ode = plan.tree, plan.noise_level == 0
    if (plan.noise_level < 0).any() or not np.isfinite(plan.noise_level).all():
        raise ValueError("a noise level is finite and not negative")
    if plan.kernel == "cps" and plan.noise_level.max() > 1:
        raise ValueError(f"noise level {plan.noise_level.max():g} under cps: it is at most 1, a quarter turn")
    if plan.kernel == "ode" and not ode.all():
        raise ValueError("kernel ode has no noise: give its edges noise level 0, or another kernel")
    if not ode[tree.level(tree.steps)].all():
        raise ValueError("the last step is ODE under every kernel: its result is the image, and it is never trained")
    parent = tree.parent[ode & (tree.parent >= 0)]
    twins = np.flatnonzero(parent[1:] == parent[:-1])
    if len(twins):
        step = int(tree.depth[parent[twins[0]]])
        raise ValueError(
            f"two siblings on ODE edges at step {step} would be equal: branch where the step is stochastic"
        )
    if not ((plan.coupling >= 0) & (plan.coupling <= 1)).all():
        raise ValueError("coupling is a correlation in [0, 1]")
    if (plan.coupling[(tree.parent >= 0) & (tree.fanout()[tree.parent] > 1)] == 1).any():
        raise ValueError("siblings whose noise has correlation 1 would be equal: branch noise s must be above 0")
    if (plan.noise_scale <= 0).any():
        raise ValueError("noise_scale is positive")


def branching(
    sigmas: Float[np.ndarray, " knot"],
    *,
    slots: int,
    fanout: Sequence[int],
    noise_level: Sequence[float],
    kernel: str,
    coupling: float = 0.0,
    roots: int = 1,
    solver: str | Sequence[str] = "euler",
    policy: Literal["live", "old"] = "live",
) -> Plan:
    """Return trees in which every node at step k has `fanout[k]` children, reached with `noise_level[k]`.

    Args:
        sigmas: the grid.
        slots: prompts of the iteration.
        fanout: children of a node at each step; 1 continues the path.
        noise_level: of each step's edges; the last must be 0.
        kernel: of the stochastic steps.
        coupling: correlation of siblings' noise where a node has several children, 1/(1+s^2) in BranchGRPO eq. (2).
        roots: independent roots a slot.
        solver: of the ODE steps, one for all or one a step.
        policy: who samples.

    Raises:
        ValueError: if a step that branches has no noise, or the last step has.
    """
    steps = len(sigmas) - 1
    tree = forest(fanout, slots, roots)
    at = np.maximum(tree.depth - 1, 0)
    inner = tree.depth > 0
    return Plan(
        tree=tree,
        sigmas=sigmas,
        kernel=kernel,
        solver=each_step(solver, steps),
        noise_level=np.where(inner, np.asarray(noise_level, float)[at], 0.0),
        coupling=np.where(inner & (np.asarray(fanout)[at] > 1), coupling, 0.0),
        noise_scale=np.ones(len(tree)),
        policy=policy,
    )


def each_step(solver: str | Sequence[str], steps: int) -> tuple[str, ...]:
    """Return the solver of each step, where one name stands for all."""
    return (solver,) * steps if isinstance(solver, str) else tuple(solver)


def star(ctx: Context, *, policy: Literal["live", "old"] = "live") -> Plan:
    """Return a deterministic path an image, from a root of its own: images differ by their roots alone."""
    return branching(
        ctx.sigmas,
        slots=ctx.slots,
        fanout=[1] * ctx.steps,
        noise_level=[0.0] * ctx.steps,
        kernel="ode",
        roots=ctx.group_size,
        solver=ctx.solver,
        policy=policy,
    )


def window(
    ctx: Context,
    *,
    start: int,
    size: int,
    noise_level: float,
    kernel: str,
    roots: Literal["shared", "independent"] = "shared",
) -> Plan:
    """Return `group_size` paths a slot that are stochastic in steps start ... start+size-1 alone.

    With a shared root they are one path until step `start`, where it fans out.

    Raises:
        ValueError: if the window is empty or reaches the last step.
    """
    if size < 1 or start < 0 or start + size > ctx.steps - 1:
        raise ValueError(
            f"a window of {size} steps from step {start} on does not fit: steps 0 to {ctx.steps - 2} can be stochastic"
        )
    shared = roots == "shared"
    return branching(
        ctx.sigmas,
        slots=ctx.slots,
        fanout=[ctx.group_size if shared and k == start else 1 for k in range(ctx.steps)],
        noise_level=[noise_level if start <= k < start + size else 0.0 for k in range(ctx.steps)],
        kernel=kernel,
        roots=1 if shared else ctx.group_size,
        solver=ctx.solver,
    )


def trunk(ctx: Context, *, at: Sequence[int], factor: int, noise_level: float, kernel: str, roots: int = 1) -> Plan:
    """Return `roots` ODE trunks a slot; at each step of `at`, `factor` stochastic branches leave them, then are ODEs.

    A trunk serves every branching step and ends at the last. TempFlow-GRPO's tree, arXiv 2508.04324.

    Raises:
        ValueError: unless `at` rises, within steps 0 to T-2.
    """
    if not len(at) or list(at) != sorted(set(at)) or not 0 <= at[0] <= at[-1] <= ctx.steps - 2:
        raise ValueError(f"branching steps {list(at)}: distinct, rising, from 0 to {ctx.steps - 2}")
    fanout, levels, branches = [], [[0.0]], 0
    for k in range(ctx.steps):
        new, goes_on = factor if k in at else 0, k < at[-1]
        children = [*([new + goes_on] if k <= at[-1] else []), *[1] * branches]
        fanout.append(np.tile(children, roots))
        levels.append([*[0.0] * goes_on, *[noise_level] * new, *[0.0] * branches])
        branches += new
    tree = grow(fanout, ctx.slots)
    return Plan(
        tree=tree,
        sigmas=ctx.sigmas,
        kernel=kernel,
        solver=each_step(ctx.solver, ctx.steps),
        noise_level=np.concatenate([np.tile(level, ctx.slots * roots) for level in levels]),
        coupling=np.zeros(len(tree)),
        noise_scale=np.ones(len(tree)),
    )


def with_tail(ctx: Context, *, first: int, ratio: float, solver: str) -> Context:
    """Return the context whose n steps from `first` on become ceil(ratio * n) steps, of `solver`: euler or dpm.

    dpm is the multistep DPM-Solver++(2M), whose history begins with the clean prediction of the step before `first`.
    """
    if first >= ctx.steps:
        raise ValueError(f"no step is left for a tail: the last stochastic one is {first - 1} of {ctx.steps} steps")
    steps = max(1, math.ceil((ctx.steps - first) * ratio - 1e-9))  # 5 * .6 is 3, also in floating point
    named = {"euler": "euler", "dpm": "dpm2m"}[solver]
    return replace(
        ctx,
        sigmas=respaced(ctx.sigmas, ctx.shift, first, steps),
        solver=each_step(ctx.solver, ctx.steps)[:first] + (named,) * steps,
    )
