"""Make the embedded models from nothing: `python -m bench.embedded.make --out DIR`.

Writes DIR/tiny-flux (a pipeline that `diffusers.FluxPipeline.from_pretrained` loads), DIR/tiny-clip (its scorer),
DIR/tiny-wan (a video pipeline that `diffusers.WanPipeline.from_pretrained` loads) and DIR/made.json (how they were made
and how good they are). Every stage saves checkpoints to DIR/work; the same command after an interruption continues.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MODELS: Mapping[str, tuple[str, ...]] = {
    "flux": ("tokenizers", "vae", "flux", "scorer"),
    "wan": ("wan-text", "wan-vae", "wan-decoder", "wan"),
}
"""The stages of every model, in order."""
STAGES = tuple(stage for stages in MODELS.values() for stage in stages)
STEPS: Mapping[str, int] = {"vae": 2000, "flux": 6000, "scorer": 1500, "wan-vae": 1000, "wan-decoder": 750, "wan": 2500}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.embedded.make", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write to; an interrupted run continues there"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pictures and batches (default 0)")
    parser.add_argument("--model", choices=(*MODELS, "all"), default="all", help="which model to make (default all)")
    parser.add_argument(
        "--stage", choices=(*STAGES, "all"), default="all", help="one stage of it (default all of them)"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps of the stage, instead of the measured number")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    arguments = parser.parse_args(argv)
    if arguments.steps is not None and arguments.stage not in STEPS:
        parser.error(f"--steps needs --stage {', '.join(STEPS)}: the stages have different numbers of steps")
    if arguments.model != "all" and arguments.stage not in (*MODELS[arguments.model], "all"):
        parser.error(
            f"--stage {arguments.stage} is not of {arguments.model}, which has {', '.join(MODELS[arguments.model])}"
        )
    return arguments


def _record(out: Path, stage: str, seed: int, threads: int, result: Mapping[str, Any]) -> None:
    """Add what a stage did to DIR/made.json."""
    import diffusers
    import numpy
    import torch
    import transformers

    path = out / "made.json"
    made = json.loads(path.read_text()) if path.exists() else {}
    made["versions"] = {
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, diffusers, transformers, numpy)},
    }
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}
    made[stage] = {"seed": seed, "threads": threads, **rounded}
    path.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")


def _stages(out: Path, seed: int, steps: Mapping[str, int]) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    from bench.embedded.make_flux import make_flux
    from bench.embedded.make_scorer import make_scorer
    from bench.embedded.make_text import make_text, make_wan_text
    from bench.embedded.make_vae import make_vae
    from bench.embedded.make_wan import make_wan
    from bench.embedded.make_wan_vae import make_wan_vae, refine_wan_decoder

    flux, wan, work = out / "tiny-flux", out / "tiny-wan", out / "work"
    return {
        "tokenizers": lambda: make_text(flux, seed),
        "vae": lambda: make_vae(flux, work, seed, steps["vae"]),
        "flux": lambda: make_flux(flux, work, seed, steps["flux"]),
        "scorer": lambda: make_scorer(out / "tiny-clip", work, seed, steps["scorer"]),
        "wan-text": lambda: make_wan_text(wan, seed),
        "wan-vae": lambda: make_wan_vae(wan, work, seed, steps["wan-vae"]),
        "wan-decoder": lambda: refine_wan_decoder(wan, work, seed, steps["wan-decoder"]),
        "wan": lambda: make_wan(wan, work, seed, steps["wan"]),
    }


def _chosen(model: str, stage: str) -> tuple[str, ...]:
    """Return the stages that the command line asks for, in order."""
    stages = STAGES if model == "all" else MODELS[model]
    return stages if stage == "all" else (stage,)


def _claim(path: Path, seed: int) -> None:
    """Note the folder's seed; what another seed began cannot be continued."""
    if path.exists() and int(path.read_text()) != seed:
        raise SystemExit(f"--seed {seed}: {path.parent} was begun with seed {path.read_text()}; give another --out")
    path.write_text(str(seed))


def main(argv: Sequence[str] | None = None) -> None:
    """Make what the command line asks for."""
    arguments = _arguments(argv)
    # Threads that spin while they wait lose many times their gain as soon as another process wants the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    torch.set_num_threads(arguments.threads)
    steps = {**STEPS, **({arguments.stage: arguments.steps} if arguments.steps is not None else {})}
    (arguments.out / "work").mkdir(parents=True, exist_ok=True)
    _claim(arguments.out / "work" / "seed", arguments.seed)
    stages = _stages(arguments.out, arguments.seed, steps)
    for stage in _chosen(arguments.model, arguments.stage):
        result = stages[stage]()
        _record(arguments.out, stage, arguments.seed, arguments.threads, result)
        print(f"{stage} done: {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
