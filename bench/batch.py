"""What a loss sees: a micro-batch of queries and items, latents and per-item numbers on the policy's device."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from bench import kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Queries with their items; per-edge numbers stay on the CPU, latents on the device."""

    x: Float[Tensor, "query *latent"]
    """Where the policy is evaluated."""
    eps: Float[Tensor, "query *latent"] | None
    """The noise of forward-process queries (`Selection.draw` >= 0); None where latents are read as stored."""
    sigma: Float[Tensor, " query"]
    sigma_next: Float[Tensor, " query"]
    unit: Int[Tensor, " query"]
    item_query: Int[Tensor, " item"]
    target: Float[Tensor, "item *latent"]
    """The child latent as stored; for a forward-process item, the leaf."""
    noise: Float[Tensor, "item *latent"] | None
    """(target - old mean) / std of each item, a standard normal; only for an algorithm whose `needs` has "noise"."""
    noise_level: Float[Tensor, " item"]
    log_prob_old: Float[Tensor, " item"]
    advantage: Float[Tensor, " item"]
    weight: Float[Tensor, " item"]
    kernel: str
    sigma_one: float

    def clean_prediction(self, velocity: Float[Tensor, "query *latent"]) -> Float[Tensor, "item *latent"]:
        """Return x0 = x - sigma * v of each item's query."""
        row = self.item_query.to(self.x.device)
        return kernel.clean_prediction(velocity[row], self.x[row], self.sigma[self.item_query])

    def over_unit(self, value: Float[Tensor, " item"]) -> Float[Tensor, " item"]:
        """Return the mean of `value` over the items of each item's unit."""
        _, unit = self.unit[self.item_query].unique(return_inverse=True)
        count = unit.bincount(minlength=len(value)).clamp(min=1).to(value.device)  # on the CPU: it waits for no device
        unit = unit.to(value.device)
        return (value.new_zeros(len(value)).index_add(0, unit, value) / count)[unit]

    def transition(self, velocity: Float[Tensor, "query *latent"]) -> kernel.Gaussian:
        """Return each item's transition under `velocity`: children of one parent share its velocity."""
        row = self.item_query.to(self.x.device)
        sigma, sigma_next = self.sigma[self.item_query], self.sigma_next[self.item_query]
        return kernel.step(self.kernel, velocity[row], self.x[row], sigma, sigma_next, self.noise_level, self.sigma_one)

    def log_prob(self, velocity: Float[Tensor, "query *latent"]) -> Float[Tensor, " item"]:
        """Return the log-prob of each item's edge under `velocity`."""
        return self.transition(velocity).log_prob(self.target)
