"""A process that runs a suite's unfinished cells: `python -m bench.worker SUITE`. Files are the truth.

Several workers, on one machine or many that share the disk, may run at once: a cell holds a lock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from bench import judge, loop, record
from bench.config import Cell, Shared, cell_from_record, digest, identity, weights
from bench.contract import Reward
from bench.cost import flops_per_call
from bench.data import evenly, load_prompts
from bench.environment import environment
from bench.lock import locked
from bench.models.source import resolve_model
from bench.patience import patient
from bench.policy import Condition, Policy
from bench.registry import Registry, load


@dataclass(slots=True, kw_only=True)
class Worker:
    """Loads what cells name, and runs them."""

    suite: Path
    device: torch.device
    encoded: dict[tuple[str, tuple[str, ...]], Condition] = field(default_factory=dict)
    """Prompts are encoded once a process."""
    scorers: dict[str, Reward] = field(default_factory=dict)
    """As are scorers loaded."""
    patient: dict[tuple[str, float], Reward] = field(default_factory=dict)
    """Those that are asked for scores, by name and timeout: each has a thread."""

    def run(self, folder: Path) -> None:
        """Train, judge and record a cell; DONE comes last."""
        config = yaml.safe_load((folder / "config.yaml").read_text())
        files = [Path(p) for p in config["plugins"]]
        cell, rewards = cell_from_record(config, load("algorithms", files)), load("rewards", files)
        record.write_json(folder / "environment.json", environment(_device_name(self.device), torch.get_num_threads()))
        policy = self.policy(replace(cell.shared, guidance=cell.keys["guidance"]), files)
        judges = self.judges(cell.shared, rewards, policy)
        self.base(cell, judges, wait=False)
        parts = self.parts(cell, rewards, policy)
        flops = flops_per_call(policy, parts.condition)
        trainer = loop.train(parts, folder)
        judge.load_average(trainer)
        # Judged in fp32, as the base was, also where training ran in bf16.
        policy.model = parts.accelerator.unwrap_model(policy.model, keep_fp32_wrapper=False)
        found = judge.judge(policy, judges, cell.shared)
        judge.write_samples(folder / "samples", found)
        _whole(folder / "pipeline", policy.save)
        base = self.base(cell, judges, wait=True)
        rows = list(record.read_rows(folder / "metrics.jsonl"))
        record.write_json(folder / "result.json", judge.make_result(cell, rows, found, judges, base, flops))
        record.write_text(folder / "DONE", cell.hash + "\n")

    def parts(self, cell: Cell, rewards: Registry, policy: Policy) -> loop.Parts:
        """Return the objects that a cell is trained with."""
        shared, prompts = cell.shared, load_prompts(cell.shared.prompts).train
        weight = weights(shared.rewards)
        AcceleratorState._reset_state(reset_partial_state=True)  # the cell before may have had another precision
        return loop.Parts(
            cell=cell,
            policy=policy,
            accelerator=Accelerator(
                cpu=self.device.type == "cpu", mixed_precision="bf16" if shared.precision == "bf16" else "no"
            ),
            rewards=self.scoring(rewards, tuple(weight), shared.reward_timeout),
            weight=weight,
            prompts=prompts,
            condition=self.condition(shared, policy, prompts),
        )

    def policy(self, shared: Shared, plugins: Sequence[Path] = ()) -> Policy:
        """Return the untrained model."""
        source = resolve_model(shared.model, plugins)
        module, _, name = source.family.partition(":")
        adapter = getattr(import_module(module), name)
        return adapter(source.folder, resolution=shared.resolution, guidance=shared.guidance, device=self.device)

    def load(self, rewards: Registry, names: Sequence[str]) -> dict[str, Reward]:
        """Return scorers by name."""
        for name in names:
            if name not in self.scorers:
                self.scorers[name] = rewards.get(name)()
        return {name: self.scorers[name] for name in names}

    def scoring(self, rewards: Registry, names: Sequence[str], seconds: float) -> dict[str, Reward]:
        """Return scorers by name; a call of one takes `seconds` at most."""
        for name, reward in self.load(rewards, names).items():
            if (name, seconds) not in self.patient:
                self.patient[name, seconds] = patient(reward, seconds)
        return {name: self.patient[name, seconds] for name in names}

    def condition(self, shared: Shared, policy: Policy, prompts: Sequence[str]) -> Condition:
        """Return encoded prompts, on the CPU: an iteration takes its own to the device."""
        key = (shared.model, tuple(prompts))
        if key not in self.encoded:
            self.encoded[key] = policy.encode(prompts).to(torch.device("cpu"))
        return self.encoded[key]

    def judges(self, shared: Shared, rewards: Registry, policy: Policy) -> judge.Judges:
        """Return the evaluation's scorers and prompts."""
        split = getattr(load_prompts(shared.prompts), shared.eval_split)
        prompts = tuple(evenly(split, shared.eval_prompts))
        featurizer: Any = self.load(rewards, [shared.features])[shared.features] if shared.features else None
        return judge.Judges(
            rewards=self.scoring(rewards, shared.eval_rewards, shared.reward_timeout),
            featurizer=featurizer,
            prompts=prompts,
            condition=self.condition(shared, policy, prompts),
        )

    def base(self, cell: Cell, judges: judge.Judges, *, wait: bool) -> Path:
        """Return the folder of the base record; make it, unless it is there or (without `wait`) being made."""
        folder = self.suite / f"base-{digest(identity(cell.shared))}"
        folder.mkdir(exist_ok=True)
        with locked(folder, wait=wait) as mine:
            if mine and not (folder / "result.json").is_file():
                judge.write_base(folder, self.policy(cell.shared, [Path(p) for p in cell.plugins]), judges, cell.shared)
        return folder


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name, then rename it."""
    part = folder.with_name(folder.name + ".part")
    for stale in (part, folder):
        shutil.rmtree(stale, ignore_errors=True)
    with record.writing(part):
        write(part)
        part.replace(folder)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def work(suite: Path, names: Sequence[str], device: str) -> int:
    """Run the named cells that are not done, each by one worker; return how many failed here.

    A cell that another worker holds is waited for at the end, and taken over if that worker died.
    """
    found = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if found.type == "cuda":
        torch.cuda.set_device(found)
    worker = Worker(suite=suite, device=found)
    folders = [suite / name for name in names]
    tried = {folder: _attempt(worker, folder, wait=False) for folder in folders}
    for folder in folders:
        if tried[folder] is None and not (folder / "error.txt").is_file():
            tried[folder] = _attempt(worker, folder, wait=True)
    return sum(done is False for done in tried.values())


def _attempt(worker: Worker, folder: Path, *, wait: bool) -> bool | None:
    """Run a cell; return whether it is done, None if another worker has it. A failure's traceback is in error.txt."""
    with locked(folder, wait=wait) as mine:
        if not mine:
            return None
        config = yaml.safe_load((folder / "config.yaml").read_text())
        if record.is_done(folder, config["hash"]):
            return True
        error = folder / "error.txt"
        error.unlink(missing_ok=True)
        try:
            worker.run(folder)
        except Exception as why:  # noqa: BLE001  # one cell's failure is recorded, reported, and does not stop the others
            in_a_line = f"{type(why).__name__}: {' '.join(str(why).split())}"
            with suppress(OSError):  # the log may be on a full disk, as may be the cell: the driver looks at the disk
                traceback.print_exc()
            with suppress(OSError):
                record.write_text(error, f"{traceback.format_exc()}\n{in_a_line}\n")
            return False
        return True


def stop_with_parent() -> None:
    """End this process when standard input closes: a driver that is killed leaves no worker behind."""

    def watch() -> None:
        while os.read(0, 1024):  # unbuffered: a thread inside a buffered read aborts the interpreter's shutdown
            pass
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite's unfinished cells; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description="Run the unfinished cells of a suite.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--cells", nargs="*", help="folder names; default: all of the suite")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--tied", action="store_true", help="stop when standard input closes")
    args = parser.parse_args(argv)
    if args.tied:
        stop_with_parent()
    names = args.cells or [path.parent.name for path in sorted(args.suite.glob("*/config.yaml"))]
    try:
        return 1 if work(args.suite, names, args.device) else 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
