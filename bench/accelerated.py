"""The accelerator of a cell: device, precision, how several processes hold the model, and who is told of iterations."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from bench.config import Cell, Shared
from bench.policy import Policy


def make_accelerator(
    shared: Shared, device: torch.device, parallel: str, trackers: tuple[str, ...], folder: Path
) -> Accelerator:
    """Return the accelerator of a cell.

    Args:
        shared: has the precision.
        device: of this process.
        parallel: ddp or fsdp2; means nothing to a single process.
        trackers: told of every iteration.
        folder: where they write.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # the cell before may have had another precision
    sharded = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    # FSDP2's own mixed precision would round the sigmas too; `prepare` gives it the autocast of the others.
    in_parts = parallel == "fsdp2" and torch.distributed.is_initialized()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if shared.precision == "bf16" and not in_parts else "no",
        fsdp_plugin=sharded if in_parts and device.type == "cuda" else None,
        log_with=list(trackers) or None,
        project_dir=folder,
    )
    if in_parts and device.type == "cpu":
        # accelerate turns FSDP on for accelerators alone; torch's works on CPUs as well.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharded
    return accelerator


def prepare(accelerator: Accelerator, policy: Policy, optimizer: Any, shared: Shared) -> Any:
    """Let the policy's model run as the accelerator says; return the optimiser of what its parameters are then."""
    if accelerator.distributed_type == DistributedType.FSDP and shared.precision == "bf16":
        policy.model.forward = torch.autocast(policy.device.type, torch.bfloat16)(policy.model.forward)
    policy.model, optimizer = accelerator.prepare(policy.model, optimizer)
    if isinstance(policy.model, FSDPModule):
        # Without this the outermost layers stay whole after a rollout, and weights that are exchanged have no effect.
        policy.model.set_reshard_after_forward(True)
        # A model may return a view of its output; nobody changes a velocity in place, of which torch warns.
        warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    return optimizer


def start_trackers(accelerator: Accelerator, cell: Cell, folder: Path) -> None:
    """Start the trackers on a cell, a run each; offline, unless their own environment variables say otherwise.

    `folder` is the cell's: TensorBoard's and W&B's files go there, MLflow's beside the suite's cells.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ:
        store = (folder.parent / "mlruns").resolve().as_uri()
        os.environ.update({"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"})
    known = {"arm": cell.arm, "seed": cell.seed, **cell.keys}
    wandb = {
        "name": cell.folder,
        "id": f"{cell.suite}-{cell.folder}"[-120:],
        "dir": str(folder / "trackers"),
        "resume": "allow",
    }
    accelerator.init_trackers(
        cell.suite,
        config={key: value if isinstance(value, (int, float, str)) else str(value) for key, value in known.items()},
        init_kwargs={
            "wandb": wandb | {"mode": os.environ.get("WANDB_MODE", "offline")},
            "mlflow": {"run_name": cell.folder},
        },
    )
