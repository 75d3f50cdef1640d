"""Suites written by hand, as the harness writes them, with numbers that a test can work out on paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import yaml
from PIL import Image

from bench.record import DiversityRecord, append_row, write_diversity, write_json, write_text

SHARED: dict[str, Any] = {
    "model": "tiny-flux",
    "resolution": 32,
    "prompts": "world",
    "rewards": ["soft:0.7"],
    "eval_rewards": ["soft", "strict"],
    "features": "tiny-clip",
    "iterations": 4,
    "prompts_per_iteration": 8,
    "group_size": 16,
    "steps": 10,
    "kernel": "dance_sde",
    "eta": 1.0,
    "clip": 0.001,
    "lr": 1e-4,
}
UNITS: dict[str, Any] = {
    name: {
        "unit": unit,
        "low": 0.0,
        "high": 1.0,
        "higher_is_better": True,
        "revision": "1",
        "reference": "embedded world",
    }
    for name, unit in (("soft", "match"), ("strict", "fraction"))
}
DANCE: dict[str, Any] = {
    "tf": 1.0,
    "roots": "shared",
    "scope": "group",
    "kernel": "dance_sde",
    "eta": 1.0,
    "clip": 0.001,
}
MIX: dict[str, Any] = {"window": 4, "stride": 1, "tau": 25, "strategy": "progressive", "kernel": "flow_sde", "eta": 0.7}
BRANCH: dict[str, Any] = {
    "splits": [0, 1, 2, 3],
    "factor": 2,
    "s": 4.0,
    "fusion": "path",
    "beta": 1.0,
    "credit_by": "depth",
    "width": "none",
    "depth": False,
    "mix": False,
    "window": 4,
    "slide": 30,
    "kernel": "dance_sde",
    "eta": 1.0,
    "clip": 0.001,
}
PAPERS = {
    "dance": "DanceGRPO, arXiv 2505.07818",
    "mix": "MixGRPO, arXiv 2507.21802",
    "branch": "BranchGRPO, arXiv 2509.06040",
}
NFE: dict[str, Any] = {
    "rollout": {"paper": 13.6875, "edges": 13.625, "calls": 12.6875},
    "update": {"edges": 12.625, "calls": 11.6875},
}
SECONDS = {"rollout": 0.5, "score": 0.1, "credit": 0.01, "update": 0.6, "other": 0.02}
BASE = "base-0123456789"


def base_scores(prompts: int = 6, samples: int = 2) -> np.ndarray:
    """Return scores that differ between prompts: 0.50, 0.51, ..."""
    return np.add.outer(0.5 + 0.01 * np.arange(prompts), 0.002 * np.arange(samples))


def write_suite(folder: Path, *, shared: Mapping[str, Any] = SHARED, preset: str = "quick", prompts: int = 6) -> Path:
    """Write a suite with its base record and no cell yet."""
    folder.mkdir(parents=True)
    suite = {"version": 1, "name": folder.name, "preset": preset, "shared": dict(shared), "shared_hash": "abc123"}
    suite |= {"arms": []}
    write_text(folder / "suite.yaml", yaml.safe_dump(suite, sort_keys=False))
    (folder / BASE).mkdir()
    scores = base_scores().tolist()
    base = {
        "version": 1,
        "shared": dict(shared),
        "prompts": [f"prompt {k}" for k in range(prompts)],
        "evaluation": dict.fromkeys(UNITS, scores),
        "units": UNITS,
        "drift": drift(0.0002, 0.0001),
    }
    write_json(folder / BASE / "result.json", base)
    return folder


def drift(kid: float, mmd2: float) -> dict[str, Any]:
    """Return a drift record."""
    return {"kid": kid, "mmd2": mmd2, "bandwidth": 3.5, "features": "tiny-clip", "n": 240}


def write_cell(
    suite: Path,
    arm: str,
    seed: int,
    *,
    algo: str = "dance",
    gain: float | np.ndarray = 0.1,
    algorithm: Mapping[str, Any] = DANCE,
    shared: Mapping[str, Any] = SHARED,
    rewards: Sequence[float] = (0.5, 0.55, 0.6, 0.65),
    done: bool = True,
    nfe: Mapping[str, Any] = NFE,
    failed: int = 0,
    flops: float = 0.0,
    seconds: Mapping[str, float] = SECONDS,
    evaluation: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Path:
    """Write a cell; `gain` is what training adds to every base score, of `strict` half as much."""
    digest = f"{crc32(f'{arm} {seed} {algorithm}'.encode()):08x}"
    folder = suite / f"{''.join(c if c.isalnum() else '_' for c in arm)}-s{seed}-{digest}"
    folder.mkdir()
    there = yaml.safe_load((suite / "suite.yaml").read_text())
    there["arms"] = list(dict.fromkeys([*there["arms"], arm]))
    write_text(suite / "suite.yaml", yaml.safe_dump(there, sort_keys=False))
    identity = {"version": 1, "suite": suite.name, "arm": arm, "algo": algo, "seed": seed, "hash": digest}
    effective = {key: algorithm.get(key, value) for key, value in shared.items()}
    info = {"paper": PAPERS[algo], "reference": f"code of {algo}", "deviations": [f"{algo} deviates"], "owns": ["eta"]}
    ran = {"shared": dict(shared), "effective": effective, "algorithm": dict(algorithm), "info": info}
    write_text(folder / "config.yaml", yaml.safe_dump({**identity, **ran, "plugins": []}, sort_keys=False))
    write_json(
        folder / "environment.json", environment or {"python": "3.11", "packages": {"torch": "2.9"}, "cpu": "any"}
    )
    for iteration, reward in enumerate(rewards):
        append_row(folder / "metrics.jsonl", _row(iteration, reward, nfe, seconds, failed))
    scores = {"soft": (base_scores() + gain).tolist(), "strict": (base_scores() + np.divide(gain, 2)).tolist()}
    result = {
        **identity,
        **ran,
        "base": BASE,
        "nfe": nfe,
        "calls": {"rollout": 100 * len(rewards), "update": 50 * len(rewards), "anchor": 0},
        "samples": 128 * len(rewards),
        "failed": failed * len(rewards),
        "iterations": len(rewards),
        "seconds": 10.0,
        "seconds_per_iteration": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": 2**30,
        "flops_per_call": flops,
        "evaluation": evaluation or scores,
        "units": UNITS,
        "drift": drift(0.01 + 0.001 * seed, 0.02),
    }
    if done:
        write_json(folder / "result.json", result)
        write_text(folder / "DONE", digest)
    return folder


def write_images(folder: Path, numbers: Iterable[int], shade: int = 0, side: int = 32) -> None:
    """Write plain images, as a model draws them for these prompts; the shade tells them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (side, side), (shade, 20 * number, 80)).save(folder / f"{number:03d}.png")


def write_measured_diversity(suite: Path, arms: Mapping[str, str], images: int = 24, feature: int = 6) -> Path:
    """Write a diversity record of these arms, label -> algorithm; each arm's features lie a step further."""
    points = np.sin(np.outer(np.arange(1, images + 1), np.arange(1, feature + 1)))
    rows = [
        {
            "arm": label,
            "algo": algo,
            "info": {"paper": PAPERS[algo], "reference": "", "deviations": [], "owns": []},
            "effective": {},
            "algorithm": {},
            "n": images,
            "kid": 0.0123 * (at + 1),
            "mmd2": 0.001 - 0.0055 * at,
            "spread": 6.75 + at,
        }
        for at, (label, algo) in enumerate(arms.items())
    ]
    result: Any = {
        "version": 2,
        "shared": dict(SHARED),
        "features": "tiny-clip",
        "bandwidth": 12.5,
        "rollouts": 4,
        "seeds": [0],
        "noise_seeds": [1],
        "prompts": ["prompt 0", "prompt 1"],
        "n": images,
        "arms": rows,
    }
    features = [points + at for at in range(len(arms))]
    write_diversity(suite / "diversity", DiversityRecord(result=result, features=features, reference=points))
    return suite / "diversity"


def _row(iteration: int, reward: float, nfe: Mapping[str, Any], seconds: Mapping[str, float], failed: int) -> Any:
    return {
        "iteration": iteration,
        "reward": {"soft": reward},
        "reward_std": {"soft": 0.1},
        "reward_total": reward,
        "loss": 0.0,
        "grad_norm": 1.0,
        "drift": 0.0,
        "log_ratio_max": 0.0,
        "clip_fraction": 0.0,
        "nfe": nfe,
        "calls": {"rollout": 100, "update": 50, "anchor": 0},
        "seconds": dict(seconds),
        "samples": 128,
        "failed": failed,
        "failures": ["soft: no face found"] if failed else [],
        "warnings": ["log-probs drift"] if failed > 1 else [],
        "peak_memory_bytes": 2**30,
    }
