"""Low-rank adapters: a model of which a few small matrices are trained, all else frozen."""

from __future__ import annotations

from typing import Any

import torch

from bench.noise import keyed
from bench.policy import Policy


@torch.no_grad()
def add_lora(policy: Policy, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze the policy's model and add adapters to the layers that its family names: W + alpha/rank * B A.

    A is normal with std 1/rank and B is 0, so that the model computes what it did. A depends on the seed alone.

    Args:
        policy: changed by the call; `lora_targets` are the ends of its layers' names.
        rank: of B A.
        alpha: twice the rank in the field's recipes.
        seed: of the cell.

    Raises:
        ValueError: if the family names no layers.
    """
    from peft import LoraConfig

    targets = getattr(policy, "lora_targets", ())
    if not targets:
        raise ValueError(f"lora_rank={rank}: {type(policy).__name__} names no layers for adapters in `lora_targets`")
    model: Any = policy.model
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))  # pyright: ignore[reportArgumentType]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for number, (name, parameter) in enumerate(trained):
        parameter.data = parameter.data.float()  # also where what is frozen beneath is of fewer bits
        if "lora_A" in name:
            normal = keyed(seed, "lora", number).standard_normal(parameter.shape, "float32") / rank
            parameter.copy_(torch.from_numpy(normal))
        else:
            parameter.zero_()
