"""The grid: cells on disk, what is missing, and the worker processes that finish it. No torch here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from bench import record
from bench.config import Cell, Shared, cell_record, digest, identity, plain
from bench.environment import torchrun
from bench.lock import locked
from bench.registry import InputError

Value = TypeVar("Value")
ROOM = 1 << 20
"""Bytes; a disk with less of them free is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Cells that belong in one table."""

    folder: Path
    preset: str
    shared: Shared
    cells: tuple[Cell, ...]

    def missing(self) -> list[Cell]:
        """Return the cells that are not done."""
        return [cell for cell in self.cells if unfinished(self, cell)]


def default_name(preset: str, shared: Shared) -> str:
    """Return preset-model-hash of the shared part."""
    return f"{preset}-{Path(shared.model).name}-{digest(identity(shared))}"


def check_closed(folder: Path, shared: Shared, *, open_suite: bool) -> None:
    """Raise InputError if the suite on disk has another shared configuration and may not take a second.

    The message names the keys that differ.
    """
    path = folder / "suite.yaml"
    if open_suite or not path.is_file():
        return
    # What was begun before a key was there has run at its default.
    there = plain(Shared()) | _known(record.read_yaml, path)["shared"]
    here = plain(shared)
    if (there.get("model_digest"), there.get("prompts_digest")) == (shared.model_digest, shared.prompts_digest):
        here |= {key: there[key] for key in ("model", "prompts") if there[f"{key}_digest"]}
    differ = [key for key in here if there.get(key) != here[key]]
    if differ:
        first = differ[0]
        raise InputError(
            f"suite {folder.name} is closed and was run with {first}={there.get(first)!r}, not {here[first]!r}"
            f"{f' ({len(differ)} keys differ)' if len(differ) > 1 else ''}; name another --suite, or --open this one"
        )


def write(suite: Suite, *, open_suite: bool = False) -> bool:
    """Create the suite's folder, its suite.yaml, and a config.yaml a cell.

    Returns:
        Whether an open suite now holds a second shared configuration.

    Raises:
        InputError: if a file that is there cannot be read.
    """
    suite.folder.mkdir(parents=True, exist_ok=True)
    path = suite.folder / "suite.yaml"
    mine = digest(identity(suite.shared))
    with locked(suite.folder, wait=True):
        value = (_known(record.read_yaml, path) if path.is_file() else None) or {
            "version": 1,
            "name": suite.folder.name,
            "preset": suite.preset,
            "shared": plain(suite.shared),
            "shared_hash": mine,
            "open": False,
            "arms": [],
        }
        second = open_suite and value["shared_hash"] != mine
        arms = dict.fromkeys([*value["arms"], *(cell.arm for cell in suite.cells)])
        value |= {"arms": list(arms), "open": value.get("open", False) or second}
        record.write_text(path, yaml.safe_dump(value, sort_keys=False))
        for cell in suite.cells:
            folder = suite.folder / cell.folder
            folder.mkdir(exist_ok=True)
            if record.is_done(folder, cell.hash):
                _known(record.read_cell, folder)  # as a report will: before hours are spent on others
            else:
                record.write_text(folder / "config.yaml", yaml.safe_dump(cell_record(cell), sort_keys=False))
    return second


def _known(read: Callable[[Path], Value], path: Path) -> Value:
    """Return what is read.

    Raises:
        InputError: if it is damaged, or of an unknown version.
    """
    try:
        return read(path)
    except ValueError as error:
        raise InputError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How many workers, and what each may use."""

    jobs: int
    threads: int
    """CPU threads a worker."""
    gpus: tuple[str, ...]
    """One a worker; empty on a CPU."""


def machine(jobs: int | None, device: str) -> Machine:
    """Return the workers of this machine: one a GPU, or one a CPU core with a thread each.

    Two single-thread processes side by side are faster on small models than one with two threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = () if device == "cpu" else _gpus()
    count = jobs or len(gpus) or cores
    return Machine(jobs=count, threads=max(1, cores // count), gpus=gpus)


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip())
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return tuple(str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU "))


def start(suite: Suite, host: Machine, device: str, trackers: Sequence[str] = ()) -> list[subprocess.Popen[bytes]]:
    """Start the workers on the missing cells; each claims cells by their locks."""
    names = [cell.folder for cell in suite.missing()]
    workers = []
    for index in range(min(host.jobs, len(names))):
        env = os.environ | {"OMP_NUM_THREADS": str(host.threads), "OMP_WAIT_POLICY": "passive"}
        if host.gpus:
            env["CUDA_VISIBLE_DEVICES"] = host.gpus[index % len(host.gpus)]
        # Workers begin at different cells, so that they do not race for each lock.
        order = names[index:] + names[:index]
        command = [sys.executable, "-m", "bench.worker", str(suite.folder), "--device", device, "--tied"]
        command += ["--cells", *order, *(["--track", *trackers] if trackers else [])]
        with (suite.folder / f"worker-{index}.log").open("ab") as log:
            workers.append(
                subprocess.Popen(
                    command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )
            )
    return workers


def finish(workers: Sequence[subprocess.Popen[bytes]], watch: Callable[[], None], interval: float = 0.5) -> None:
    """Wait for the workers, calling `watch` now and then; on an interrupt stop them all, and leave what is on disk."""
    try:
        while any(worker.poll() is None for worker in workers):
            watch()
            time.sleep(interval)
        watch()
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGTERM)
        for worker in workers:
            worker.wait()


def unfinished(suite: Suite, cell: Cell) -> bool:
    """Return whether a cell is not done."""
    return not record.is_done(suite.folder / cell.folder, cell.hash)


def remarks(suite: Suite) -> dict[str, str]:
    """Return, of every cell whose rows carry warnings or failed leaves, what they say."""
    said = {}
    for cell in suite.cells:
        rows = list(record.read_rows(suite.folder / cell.folder / "metrics.jsonl"))
        failed = sum(row["failed"] for row in rows)
        lines = [text for row in rows for text in row["warnings"]][:1]
        if failed:
            why = dict.fromkeys(text for row in rows for text in row["failures"])
            lines.append(f"{failed} images could not be scored: {'; '.join(why) or 'NaN scores'}")
        result = record.read_cell(suite.folder / cell.folder).result if not unfinished(suite, cell) else None
        if result is not None and (failures := result["evaluation_failures"]):
            lines.append(f"held-out images could not be scored, and count in no metric: {'; '.join(failures)}")
        if lines:
            said[f"{cell.arm} seed {cell.seed}"] = "; ".join(lines)
    return said


def failures(suite: Suite) -> dict[str, str]:
    """Return, of every cell that is not done, the last line of its error, or what else is known."""
    said = {}
    for cell in suite.missing():
        error = suite.folder / cell.folder / "error.txt"
        lines = error.read_text().strip().splitlines() if error.is_file() else []
        full = "; its disk is full" if shutil.disk_usage(suite.folder).free < ROOM else ""
        silent = f"stopped without a word{full}; see {suite.folder}/worker-*.log"
        if torchrun()[1] > 1:
            silent = f"not finished{full}: the run ended before; the same command goes on"
        said[cell.arm + f" seed {cell.seed}"] = lines[-1] if lines else silent
    return said
