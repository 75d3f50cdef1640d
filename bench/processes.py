"""The processes that torchrun started for one run: what they tell each other, and tensors that they hold in parts."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from bench.environment import torchrun

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that a process which failed waits for the others to fail alike, before it ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process's place among those of the run; by default it is alone."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """Of messages, on the CPU: it waits as long as the slowest scorer takes."""

    @property
    def first(self) -> bool:
        """Return whether this process writes the records."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """Return the value that each process gives, by rank; any that pickle knows."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: T) -> T:
        """Return the first process's value; what the others give does not matter."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def failed_alike(self, what: str) -> bool:
        """Return whether every process fails at the same thing, so that the run can go on to the next."""
        if self.count == 1:
            return True
        store = dist.distributed_c10d._get_default_store()
        failed, until = store.add(what, 1), time.monotonic() + PATIENCE
        while 0 < failed < self.count and time.monotonic() < until:
            time.sleep(0.1)
            failed = store.add(what, 0)
        if failed == self.count:
            return True
        store.add(what, -2 * self.count)  # whoever fails from now on does so because this one is gone
        return False


ALONE = Processes()


def join(device: torch.device) -> Processes:
    """Return this process's place, after all have met; alone, at once.

    Raises:
        RuntimeError: if they are not as many as torchrun said.
    """
    expected = torchrun()[1]
    if expected == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    present = torch.ones(1)
    dist.all_reduce(present, group=group)
    if not dist.get_world_size() == expected == int(present):
        raise RuntimeError(f"torchrun started {expected} processes, {int(present)} of {dist.get_world_size()} are here")
    return Processes(rank=dist.get_rank(), count=expected, group=group)


def leave() -> None:
    """Take leave of the others, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def give_up() -> None:
    """End this process, and with it, by torchrun's rule, all others, which wait for it in vain."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def whole(value: Any) -> Any:
    """Return a tensor that processes hold in parts in full and on the CPU; all ask together. Else return what it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; it shares the tensor's memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor on the target's device, and in parts if the target is."""
    value = value.to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value
