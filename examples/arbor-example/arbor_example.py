"""A package's plugins: `rank`, an algorithm that outliers cannot sway, and `colourful`, a reward for saturation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float, Int

from bench.contract import Algorithm, Batch, Context, Info, Outcome, RewardInfo, Velocity
from bench.loss import policy_gradient
from bench.plan import Plan, window
from bench.select import Selection, trainable, trajectory
from bench.tree import fuse

if TYPE_CHECKING:
    from torch import Tensor


def rank_scores(reward: Float[np.ndarray, " leaf"], slot: Int[np.ndarray, " leaf"]) -> Float[np.ndarray, " leaf"]:
    """Return each leaf's centred rank in its slot, in units of the std of n different ranks; NaN where it failed."""
    same, scored = slot[:, None] == slot, ~np.isnan(reward)
    better = same & (reward[:, None] > reward)  # false beside a NaN
    n = (same & scored).sum(1)
    return np.where(scored, (better.sum(1) - better.sum(0)) / np.sqrt(np.maximum(n, 1) * (n + 1) / 3), np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank(Algorithm):
    """GRPO on ranks: by how much an image is better than another of its prompt makes no difference.

    A = (images it beats - images that beat it) / sqrt(n (n + 1) / 3),  n scored images of the prompt
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x)

    The numerator is twice the centred rank, ties sharing their mean; the root is its unbiased std where none are equal.
    No advantage exceeds sqrt(3), whatever the rewards.
    """

    info: ClassVar[Info] = Info(
        paper="GRPO on ranks, as fitness shaping in Natural Evolution Strategies, arXiv 1106.4487",
        reference="none: the package arbor-example is the code",
        deviations=(
            "scores are linear in the rank; NES's are level for the worse half and logarithmic for the better one",
            "the window of MixGRPO, arXiv 2507.21802, stands still on the first steps",
        ),
        owns=frozenset({"kernel", "eta"}),
    )

    window: int = 4
    """Steps, from the first on, that are stochastic and trained; the others are an ODE."""
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window={self.window}: at least one step is trained")

    def plan(self, ctx: Context) -> Plan:
        """One root a prompt, which fans out at step 0; an SDE in the window, an ODE after it."""
        return window(ctx, start=0, size=self.window, noise_level=self.eta, kernel=self.kernel)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's rank in its prompt's group, centred and scaled, on every edge of its path."""
        return fuse(plan.tree, outcome.leaf, rank_scores(outcome.reward, plan.tree.slot[outcome.leaf]))

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """The window's edges."""
        return trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)


class Colourful:
    """Mean saturation of the picture: how far its colours are from grey."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="saturation",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        revision="1",
        reference="S of HSV, (max - min) / max of a pixel's RGB and 0 for black, mean over the pixels",
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],
    ) -> Float[np.ndarray, " leaf"]:
        """Return each image's mean saturation; NaN for an image with a value that is no number."""
        valid = images.isfinite().flatten(1).all(1)
        high, low = images.amax(1), images.amin(1)
        saturation = (high - low) / high.clamp(min=1e-6)
        score = saturation.flatten(1).mean(1).masked_fill(~valid, float("nan"))
        return score.double().cpu().numpy()


ARMS = {"rank": Rank()}
REWARDS = {"colourful": Colourful}
