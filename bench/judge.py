"""The base record of a suite, and the result of a trained cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench import record
from bench.config import Cell, Shared, identity, info_record, plain, settings
from bench.contract import Reward
from bench.data import Counts
from bench.named import NamedPolicy, exchanged
from bench.policy import Policy, Rows
from bench.processes import ALONE, Processes, local, whole
from bench.schedule import sigma_grid
from bench.update import Trainer
from bench.writing import writing
from eval.diversity import kid, median_distance, mmd2
from eval.heldout import Evaluation, Featurizer, evaluate

FRAME = 100
"""Milliseconds that a frame of a kept video is shown."""
SHOWN = 8
"""Prompts of which an image is kept at every checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Who judges, and on what."""

    rewards: Mapping[str, Reward]
    featurizer: Featurizer | None
    prompts: tuple[str, ...]
    counts: Counts
    """Of the prompt set that they are from."""
    condition: Rows


def judge(
    policy: Policy, judges: Judges, shared: Shared, stream: str = "eval", processes: Processes = ALONE
) -> Evaluation:
    """Return the evaluation of a policy as the suite's keys say, of all processes."""
    return evaluate(
        policy,
        judges.condition,
        judges.prompts,
        judges.rewards,
        judges.featurizer,
        sigmas=sigma_grid(shared.eval_steps, shared.shift, shared.grid),
        solver=shared.eval_solver,
        samples=shared.eval_samples,
        chunk=shared.micro_batch,
        stream=stream,
        processes=processes,
    )


def base_evaluations(
    policy: Policy, judges: Judges, shared: Shared, processes: Processes = ALONE
) -> tuple[Evaluation, Evaluation]:
    """Return the evaluation of the base model, and one of disjoint noise."""
    found = judge(policy, judges, shared, processes=processes)
    return found, judge(policy, judges, shared, stream="eval-reference", processes=processes)


def write_base(folder: Path, found: Evaluation, reference: Evaluation, judges: Judges, shared: Shared) -> None:
    """Write the base model's record."""
    with writing(folder / "features.npz"):
        np.savez(folder / "features.npz", reference=reference.features)
    write_samples(folder / "samples", found.images)
    result: record.BaseResult = {
        "version": record.VERSION,
        "shared": identity(shared),
        "prompts": list(judges.prompts),
        "evaluation": plain_scores(found),
        "units": units(judges.rewards),
        "drift": drift(found.features, reference.features, shared.features),
        "prompt_counts": asdict(judges.counts),
    }
    record.write_json(folder / "result.json", result)


def make_result(
    cell: Cell, rows: Sequence[record.Row], found: Evaluation, judges: Judges, base: Path, flops: float
) -> record.Result:
    """Return the record of a finished cell."""
    try:
        with np.load(base / "features.npz") as features:
            reference = features["reference"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise RuntimeError(f"{base / 'features.npz'} cannot be read; delete {base} and run again") from error
    return {
        "version": record.VERSION,
        "suite": cell.suite,
        "arm": cell.arm,
        "algo": cell.algo,
        "seed": cell.seed,
        "hash": cell.hash,
        "info": info_record(cell.algorithm),
        "shared": plain(cell.shared),
        "effective": cell.effective,
        "algorithm": settings(cell.algorithm),
        "base": base.name,
        "nfe": mean_nested([row["nfe"] for row in rows]),
        "calls": {kind: sum(row["calls"][kind] for row in rows) for kind in rows[0]["calls"]},
        "samples": sum(row["samples"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
        "iterations": len(rows),
        "seconds": sum(sum(row["seconds"].values()) for row in rows),
        "seconds_per_iteration": seconds_per_iteration(rows),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "flops_per_call": flops,
        "evaluation": plain_scores(found),
        "evaluation_failures": list(found.failures),
        "units": units(judges.rewards),
        "drift": drift(found.features, reference, cell.shared.features),
        "prompt_counts": asdict(judges.counts),
    }


def seconds_per_iteration(rows: Sequence[record.Row]) -> dict[str, float]:
    """Return the median seconds by phase and in total, the first iteration dropped as warm-up where there are more."""
    warm = rows[1:] or rows
    phases = {name: float(np.median([row["seconds"][name] for row in warm])) for name in warm[0]["seconds"]}
    return phases | {"total": float(np.median([sum(row["seconds"].values()) for row in warm]))}


def mean_nested(values: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the mean of dictionaries of dictionaries of numbers."""
    return {
        part: {kind: float(np.mean([v[part][kind] for v in values])) for kind in values[0][part]} for part in values[0]
    }


def drift(features: np.ndarray, reference: np.ndarray, scorer: str) -> record.Drift:
    """Return the distance of samples from base samples of a disjoint noise stream."""
    if not features.size:
        return {"kid": None, "mmd2": None, "bandwidth": None, "features": scorer, "n": 0}
    bandwidth = median_distance(reference)
    return {
        "kid": kid(features, reference),
        "mmd2": mmd2(features, reference, bandwidth),
        "bandwidth": bandwidth,
        "features": scorer,
        "n": len(features),
    }


def plain_scores(found: Evaluation) -> record.Scores:
    """Return scores as JSON has them: null for a failed one."""
    return {
        name: [[None if np.isnan(x) else float(x) for x in prompt] for prompt in value]
        for name, value in found.scores.items()
    }


def units(rewards: Mapping[str, Reward]) -> dict[str, record.Unit]:
    """Return what each reward's numbers mean; a range without an end has null there."""
    return {name: cast(record.Unit, reward.info.as_json()) for name, reward in rewards.items()}


def write_samples(folder: Path, images: Float[Tensor, "shown *frame 3 height width"]) -> None:
    """Write images as PNG, videos as animated PNG, named by their prompt's number."""
    from PIL import Image

    def write(part: Path) -> None:
        part.mkdir(parents=True)
        for number, image in enumerate(images):
            frames = (image.movedim(-3, -1) * 255).round().to(torch.uint8).numpy()
            first, *others = map(Image.fromarray, frames if frames.ndim == 4 else [frames])
            moving = {"save_all": True, "append_images": others, "duration": FRAME, "loop": 0} if others else {}
            first.save(part / f"{number:03d}.png", **moving)

    record.write_folder(folder, write)


def averaged(trainer: Trainer) -> AbstractContextManager[None]:
    """Return a context in which the model has its moving average, if one is kept: what is shown, judged and saved."""
    parameters = [local(p.detach()) for p in trainer.parameters()]
    return exchanged(parameters, NamedPolicy(weights=trainer.ema)) if trainer.ema else nullcontext()


def snapshot(trainer: Trainer, judges: Judges, shared: Shared) -> Float[Tensor, "shown *frame 3 height width"]:
    """Return an image, or video, of each of the first held-out prompts, under the noise of the evaluation."""
    few = replace(judges, rewards={}, featurizer=None, prompts=judges.prompts[:SHOWN])
    with averaged(trainer):
        return judge(trainer.policy, few, replace(shared, eval_samples=1)).images


def trained_weights(trainer: Trainer) -> list[Tensor]:
    """Return what was trained, whole and on the CPU."""
    with averaged(trainer):
        return [whole(p.detach()).to("cpu", copy=True) for p in trainer.parameters()]


@torch.no_grad()
def load_weights(policy: Policy, weights: Sequence[Tensor]) -> None:
    """Put weights into the trainable parameters of an untrained model."""
    for parameter, value in zip((p for p in policy.model.parameters() if p.requires_grad), weights, strict=True):
        parameter.copy_(value)
