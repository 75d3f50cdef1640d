"""A process that runs a suite's unfinished cells: `python -m bench.worker SUITE`. Files are the truth.

Several workers, on one machine or many that share the disk, may run at once: a cell holds a lock.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from bench import judge, loop, record
from bench.accelerated import make_accelerator, start_trackers
from bench.config import Cell, Shared, cell_from_record, check_processes, digest, identity
from bench.contract import PAUSED, Reward, UnavailableError
from bench.cost import flops_per_call
from bench.data import Prompts, evenly, load_prompts, of_run
from bench.encoded import Encoded, encode
from bench.environment import cache_folder, environment
from bench.lock import locked
from bench.lora import add_lora
from bench.models.source import adapter_digest, described, folder_digest, resolve_model
from bench.parse import weights
from bench.patience import patient
from bench.policy import Build, Policy, enable_gradient_checkpointing
from bench.processes import ALONE, Processes, give_up, join, leave
from bench.registry import Registry, load
from bench.scorers import lookup
from bench.update import Trainer


@dataclass(slots=True, kw_only=True)
class Worker:
    """Loads what cells name, and runs them."""

    suite: Path
    device: torch.device
    processes: Processes = ALONE
    parallel: str = "ddp"
    """How they hold the model: each the whole (ddp), or each a part (fsdp2)."""
    trackers: tuple[str, ...] = ()
    """Told of every iteration, beside metrics.jsonl."""
    scorers: dict[str, Reward] = field(default_factory=dict)
    """Scorers are loaded once a process."""
    patient: dict[tuple[str, float], Reward] = field(default_factory=dict)
    """Those that are asked for scores, by name and timeout: each has a thread."""

    def run(self, folder: Path) -> None:
        """Train, judge and record a cell; DONE comes last."""
        config = yaml.safe_load((folder / "config.yaml").read_text())
        files = [Path(p) for p in config["plugins"]]
        cell, rewards = cell_from_record(config, load("algorithms", files)), load("rewards", files)
        if self.processes.first:
            source = resolve_model(cell.shared.model, files, weights=cell.shared.model_weights)
            revision = {"model_revision": source.revision} if source.revision else {}
            record.write_json(folder / "environment.json", self.environment() | revision)
        # One model is in memory at a time: each of these lets go of its own.
        judges, flops = self.prepared(cell, rewards)
        self.base(cell, judges, wait=False)
        trained = self.train(self.parts(cell, rewards, self.trainable(cell)), judges, folder)
        gc.collect()  # what accelerate wraps a model in refers to itself
        base = self.base(cell, judges, wait=True)
        # Judged whole and in fp32, as the base was, also where training ran in parts or in bf16.
        policy = self.trainable(cell)
        judge.load_weights(policy, trained)
        found = judge.judge(policy, judges, cell.shared, processes=self.processes)
        if self.processes.first:
            rows = list(record.read_rows(folder / "metrics.jsonl"))
            judge.write_samples(shown(folder, len(rows)), found.images)
            if cell.shared.model_weights == "pretrained":  # nobody wants a model of random weights
                record.write_folder(folder / ("lora" if cell.shared.lora_rank else "pipeline"), policy.save)
            record.write_json(folder / "result.json", judge.make_result(cell, rows, found, judges, base, flops))
            record.write_text(folder / "DONE", cell.hash + "\n")

    def prepared(self, cell: Cell, rewards: Registry) -> tuple[judge.Judges, float]:
        """Return the evaluation's scorers and encoded prompts, and the operations of a call of the cell's model."""
        policy = self.trainable(cell)
        judges = self.judges(cell, rewards, policy)
        return judges, flops_per_call(policy, judges.condition)

    def train(self, parts: loop.Parts, judges: judge.Judges, folder: Path) -> list[torch.Tensor]:
        """Train a cell; return its weights, and let go of everything else."""

        def show(trainer: Trainer, iterations: int) -> None:
            images = judge.snapshot(trainer, judges, parts.cell.shared)
            if self.processes.first:
                judge.write_samples(shown(folder, iterations), images)

        try:
            return judge.trained_weights(loop.train(parts, folder, show))
        finally:
            for tracker in parts.accelerator.trackers:
                tracker.finish()

    def parts(self, cell: Cell, rewards: Registry, policy: Policy) -> loop.Parts:
        """Return the objects that a cell is trained with."""
        shared, prompts = cell.shared, loaded(cell).train
        check_processes(self.processes.count, shared)
        weight = weights(shared.rewards)
        folder = self.suite / cell.folder
        accelerator = make_accelerator(shared, self.device, self.parallel, self.trackers, folder / "trackers")
        if self.trackers:
            start_trackers(accelerator, cell, folder)
        return loop.Parts(
            cell=cell,
            policy=policy,
            accelerator=accelerator,
            rewards=self.scoring(cell, rewards, weight),
            weight=weight,
            prompts=prompts,
            condition=self.condition(
                cell, policy, prompts, of_run(prompts, cell.seed, shared.iterations, shared.prompts_per_iteration)
            ),
            processes=self.processes,
        )

    def environment(self) -> dict[str, Any]:
        """Return where cells run."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return environment(name, torch.get_num_threads(), self.processes.count, self.parallel)

    def trainable(self, cell: Cell) -> Policy:
        """Return the untrained model as the cell trains it: with its guidance, and adapters if it has any."""
        shared = cell.shared
        policy = self.policy(replace(shared, guidance=cell.keys["guidance"]), [Path(p) for p in cell.plugins])
        if shared.lora_rank:
            add_lora(policy, rank=shared.lora_rank, alpha=shared.lora_alpha or 2.0 * shared.lora_rank, seed=cell.seed)
        if shared.gradient_checkpointing:
            enable_gradient_checkpointing(policy)
        return policy

    def policy(self, shared: Shared, plugins: Sequence[Path] = ()) -> Policy:
        """Return the untrained model."""
        source = resolve_model(shared.model, plugins, weights=shared.model_weights)
        module, _, name = source.family.adapter.partition(":")
        adapter = getattr(import_module(module), name)
        frozen = torch.bfloat16 if shared.frozen == "bf16" else torch.float32
        build = Build(
            height=shared.height,
            width=shared.width,
            frames=shared.frames,
            guidance=shared.guidance,
            device=self.device,
            weights=shared.model_weights,
            dtype=frozen if shared.lora_rank else torch.float32,
            frozen=frozen,
        )
        return adapter(source.folder, build)

    def load(self, cell: Cell, rewards: Registry, names: Iterable[str]) -> dict[str, Reward]:
        """Return a cell's scorers by what records call them."""
        written = {name: cell.scorers.get(name, name) for name in names}
        for name, text in written.items():
            if text not in self.scorers:
                scorer = lookup.looked_at(text, rewards)
                lookup.check_same(name, text, scorer, cell.shared.scorer_revisions)
                self.scorers[text] = lookup.loaded(name, scorer)
        return {name: self.scorers[text] for name, text in written.items()}

    def scoring(self, cell: Cell, rewards: Registry, names: Iterable[str]) -> dict[str, Reward]:
        """Return a cell's scorers by what records call them; a call of one takes `reward_timeout` at most."""
        found, seconds = self.load(cell, rewards, names), cell.shared.reward_timeout
        for name, reward in found.items():
            if (name, seconds) not in self.patient:
                waits = getattr(reward, "waits", False)
                self.patient[name, seconds] = reward if waits else patient(reward, seconds)
        return {name: self.patient[name, seconds] for name in found}

    def condition(self, cell: Cell, policy: Policy, prompts: Sequence[str], needed: Sequence[int]) -> Encoded:
        """Return encoded prompts, on disk: an iteration reads its own."""
        shared = cell.shared
        source = resolve_model(shared.model, [Path(p) for p in cell.plugins], weights=shared.model_weights)
        told = [folder_digest(source.folder), adapter_digest(source.family), shared.model_weights, shared.frozen]
        if source.family.first_frame:  # whose latent is of a video's size
            told.append(f"{shared.frames}x{shared.height}x{shared.width}")
        folder = cache_folder() / "-".join(told)
        images = load_prompts(shared.prompts, framed=source.family.first_frame).images
        return encode(
            policy,
            prompts,
            folder,
            images=images,
            needed=needed,
            guided=source.family.classifier_free,
            processes=self.processes,
        )

    def judges(self, cell: Cell, rewards: Registry, policy: Policy) -> judge.Judges:
        """Return the evaluation's scorers and prompts."""
        shared = cell.shared
        found = loaded(cell)
        prompts = tuple(evenly(getattr(found, shared.eval_split), shared.eval_prompts))
        featurizer: Any = self.load(cell, rewards, [shared.features])[shared.features] if shared.features else None
        return judge.Judges(
            rewards=self.scoring(cell, rewards, shared.eval_rewards),
            featurizer=featurizer,
            prompts=prompts,
            counts=found.counts,
            condition=self.condition(cell, policy, prompts, range(len(prompts))),
        )

    def base(self, cell: Cell, judges: judge.Judges, *, wait: bool) -> Path:
        """Return the folder of the base record; make it, unless it is there or (without `wait`) being made."""
        folder, shared = self.suite / f"base-{digest(identity(cell.shared))}", cell.shared
        folder.mkdir(exist_ok=True)
        with claimed(folder, self.processes, wait=wait) as mine:
            if mine and not self.processes.from_first((folder / "result.json").is_file()):
                policy = self.policy(shared, [Path(p) for p in cell.plugins])
                found, reference = judge.base_evaluations(policy, judges, shared, self.processes)
                if self.processes.first:
                    judge.write_base(folder, found, reference, judges, shared)
        return folder


def loaded(cell: Cell) -> Prompts:
    """Return the suite's prompts.

    Raises:
        RuntimeError: if they are no longer what the suite was written for.
    """
    shared = cell.shared
    family = described(shared.model, [Path(p) for p in cell.plugins]).family
    found = load_prompts(shared.prompts, framed=family.first_frame)
    if shared.prompts_digest and found.digest != shared.prompts_digest:
        raise RuntimeError(
            f"{shared.prompts} has changed since this suite was begun (digest {found.digest}, not "
            f"{shared.prompts_digest}): restore it, or run the command again for a suite of the new prompts"
        )
    return found


def shown(folder: Path, iterations: int) -> Path:
    """Return where a cell's images after some iterations are."""
    return folder / "samples" / f"{iterations:06d}"


@contextmanager
def claimed(folder: Path, processes: Processes, *, wait: bool) -> Iterator[bool]:
    """Hold a folder's lock, the first process for all; yield whether it is held."""
    with locked(folder, wait=wait) if processes.first else nullcontext(True) as mine:
        yield processes.from_first(mine)


def found_device(name: str) -> torch.device:
    """Return the device of this process."""
    kind = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if not kind.startswith("cuda"):
        return torch.device(kind)
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind)
    torch.cuda.set_device(device)
    return device


def work(worker: Worker, names: Sequence[str]) -> int:
    """Run the named cells that are not done, each by one worker; return how many failed here.

    A cell that another worker holds is waited for at the end, and taken over if that worker died.
    """
    folders, processes = [worker.suite / name for name in names], worker.processes
    tried = {folder: _attempt(worker, folder, wait=False) for folder in folders}
    for folder in folders:
        if processes.from_first(tried[folder] is None and not (folder / "error.txt").is_file()):
            tried[folder] = _attempt(worker, folder, wait=True)
    return sum(done is False for done in tried.values())


def _attempt(worker: Worker, folder: Path, *, wait: bool) -> bool | None:
    """Run a cell; return whether it is done, None if another worker has it. A failure's traceback is in error.txt."""
    with claimed(folder, worker.processes, wait=wait) as mine:
        if not mine:
            return None
        digest_of_cell = yaml.safe_load((folder / "config.yaml").read_text())["hash"]
        if worker.processes.from_first(record.is_done(folder, digest_of_cell)):
            return True
        error = folder / "error.txt"
        if worker.processes.first:
            error.unlink(missing_ok=True)
        try:
            worker.run(folder)
        # One cell's failure, or a plugin that exits, is recorded, reported, and does not stop the others.
        except (Exception, SystemExit) as why:  # noqa: BLE001
            with suppress(OSError):  # the log may be on a full disk, as may be the cell: the driver looks at the disk
                traceback.print_exc()
            in_a_line = told(why)
            alike = worker.processes.failed_alike(folder.name)
            if worker.processes.first if alike else not error.exists():
                with suppress(OSError):
                    record.write_text(error, f"{traceback.format_exc()}\n{in_a_line}\n")
            if not alike:
                ends = f"on one of {worker.processes.count} processes, which ends the run; the same command goes on"
                print(f"bench: {folder.name} failed {ends}: {in_a_line}", file=sys.stderr)
                give_up()
            return False
        if worker.processes.first and worker.processes.count > 1:
            print(f"{folder.name}: done", flush=True)
        return True


def told(why: BaseException) -> str:
    """Return an error as a line: of a scorer that is not there, that the cell is paused."""
    said = " ".join(str(why).split())
    if isinstance(why, UnavailableError) or isinstance(why.__cause__, UnavailableError):
        return f"{PAUSED}{said}; the same command goes on"
    return f"{type(why).__name__}: {said}"


def stop_with_parent() -> None:
    """End this process when standard input closes: a driver that is killed leaves no worker behind."""

    def watch() -> None:
        while os.read(0, 1024):  # unbuffered: a thread inside a buffered read aborts the interpreter's shutdown
            pass
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def stop_without_parent() -> None:
    """End this process when the one that started it is gone: a torchrun that is killed leaves no process behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite's unfinished cells; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description="Run the unfinished cells of a suite.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--cells", nargs="*", help="folder names; default: all of the suite")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--tied", action="store_true", help="stop when standard input closes")
    parser.add_argument(
        "--parallel", default="ddp", choices=("ddp", "fsdp2"), help="how torchrun's processes hold the model"
    )
    parser.add_argument("--track", nargs="*", default=[], help="trackers that are told of every iteration")
    args = parser.parse_args(argv)
    if args.tied:
        stop_with_parent()
    names = args.cells or [path.parent.name for path in sorted(args.suite.glob("*/config.yaml"))]
    try:
        device = found_device(args.device)
        worker = Worker(
            suite=args.suite,
            device=device,
            processes=join(device),
            parallel=args.parallel,
            trackers=tuple(args.track),
        )
        return 1 if work(worker, names) else 0
    except KeyboardInterrupt:
        return 130
    finally:
        leave()


if __name__ == "__main__":
    sys.exit(main())
