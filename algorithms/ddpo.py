"""DDPO: the ancestor. Independent SDE paths, rewards normalised by what each prompt has earned so far; no groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Memory, Outcome, Tensor, Velocity
from bench.loss import policy_gradient
from bench.plan import Plan, window
from bench.select import Selection, trainable, trajectory
from bench.tree import fuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddpo(Algorithm):
    """DDPO with importance sampling and per-prompt statistics.

    A = (r - m) / (s + eps),  m and s of the prompt's last rewards, or of the iteration's where they are too few
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x)
    """

    info: ClassVar[Info] = Info(
        paper="Training Diffusion Models with Reinforcement Learning (DDPO), arXiv 2305.13301",
        reference="none read; from the paper, for flow matching with the suite's SDE in place of DDIM",
        deviations=(
            "the images of a prompt share an iteration, as for every arm; in the paper prompts are drawn one by one",
            "steps are those of a flow-matching SDE; the paper's are DDIM's with eta 1",
        ),
        owns=frozenset({"kernel", "eta"}),
        claims=frozenset({"group_size", "policy_gradient"}),
    )

    buffer: int = 32
    """Rewards of a prompt that are remembered."""
    at_least: int = 16
    """Remembered rewards from which on a prompt has statistics of its own."""
    eps: float = 1e-6
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if not 2 <= self.at_least <= self.buffer or self.eps < 0:
            raise ValueError("at_least is from 2 to buffer, and eps not negative")

    def plan(self, ctx: Context) -> Plan:
        """Independent roots, SDE everywhere but on the last step."""
        return window(ctx, start=0, size=ctx.steps - 1, noise_level=self.eta, kernel=self.kernel, roots="independent")

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward, normalised by its prompt's remembered rewards, these included (population, eps 1e-6)."""
        slot, known = plan.tree.slot[outcome.leaf], self.remembered(plan, outcome, ctx)
        of_all = outcome.reward[~np.isnan(outcome.reward)]
        value = np.full(len(slot), np.nan)
        for s in np.unique(slot):
            own = known[str(ctx.prompts[s])]
            base = np.asarray(own) if len(own) >= self.at_least else of_all
            if len(base):
                value[slot == s] = (outcome.reward[slot == s] - base.mean()) / (base.std() + self.eps)
        return fuse(plan.tree, outcome.leaf, value)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """All steps but the last."""
        return trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)

    def remembered(self, plan: Plan, outcome: Outcome, ctx: Context) -> dict[str, list[float]]:
        """Return the last rewards of every prompt seen so far, this iteration's included."""
        found = {prompt: list(rewards) for prompt, rewards in ctx.memory.get(outcome.name, {}).items()}
        slot = plan.tree.slot[outcome.leaf]
        for s, prompt in enumerate(map(str, ctx.prompts)):
            own = outcome.reward[(slot == s) & ~np.isnan(outcome.reward)]
            found[prompt] = [*found.get(prompt, []), *own.tolist()][-self.buffer :]
        return found

    def remember(self, plan: Plan, outcomes: Mapping[str, Outcome], ctx: Context) -> Memory:
        """Every prompt's last rewards, by reward."""
        return {name: self.remembered(plan, outcome, ctx) for name, outcome in outcomes.items()}


ARMS = {"ddpo": Ddpo()}
