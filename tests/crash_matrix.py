"""Runs killed in every phase, and taken up again, against one that was not: `python tests/crash_matrix.py`.

Each run is the real command line, with two workers, on a pipeline of random weights. A kill is a SIGKILL of the driver
and its workers, sent from inside the phase (tests/killer), at a moment that --seed decides. Then the same command runs
until it exits with 0, and its records must be those of the uninterrupted run, but for seconds, memory and time stamps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny import arguments

from bench.record import read_rows

KILLER = Path(__file__).with_name("killer")
HARD = {"updates_per_iteration": 2, "ema": 0.9, "checkpoint_every": 2, "iterations": 5}
"""What has the most state: two optimiser steps an iteration, a moving average; the last checkpoint is out of turn."""
ARMS = "branch,nft,ddpo"
"""A tree; an arm with an old policy and a reference; one that remembers rewards."""
CALLS = {"rollout": 10, "update": 10, "checkpoint": 4, "base": 1, "evaluation": 3, "report": 1}
"""Calls of a phase that one of two workers has at least: they share three cells, and one evaluates the base, twice."""
SECONDS = {"rollout": 0.1, "update": 0.2, "checkpoint": 0.0, "base": 0.3, "evaluation": 0.1, "report": 0.5}
"""About how long a call takes; what is shorter is killed as it returns."""
CLOCK = ("seconds", "seconds_per_iteration", "peak_memory_bytes")
RESTARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Where a run is killed."""

    phase: str
    call: int
    after: float
    """Part of the call that passes before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survived:
    """What came of a kill."""

    kill: Kill
    note: Mapping[str, Any] | None
    """What the killer wrote; None if no process came to that phase."""
    status: int
    """Of the killed driver."""
    survivors: list[int]
    """Processes that lived on."""
    on_disk: str
    """Iterations of each cell at the kill, rows/checkpoint."""
    statuses: list[int]
    """Of the runs after it."""
    differ: list[str]
    """Records that are not the uninterrupted run's."""

    @property
    def as_meant(self) -> bool:
        """Return whether all of the run was killed in its phase."""
        return (
            self.note is not None and self.note["phase"] == self.kill.phase and self.status == -9 and not self.survivors
        )

    @property
    def equal(self) -> bool:
        """Return whether the run ended as if nothing had happened."""
        return self.statuses[-1:] == [0] and not self.differ

    def line(self) -> str:
        """Return a line of the table."""
        note = self.note or {}
        when = f"{note['bytes']} of {note['of']} bytes" if "bytes" in note else f"{self.kill.after:.0%}"
        said = "equal" if self.equal else f"DIFFERS: {', '.join(self.differ) or self.statuses}"
        where = self.kill.phase if self.as_meant else f"{self.kill.phase} MISSED ({self.status}, {self.survivors})"
        return f"{where:<12} {self.kill.call:>4} {when:>22} {self.on_disk:>18} {len(self.statuses):>8}  {said}"


HEADING = f"{'phase':<12} {'call':>4} {'passed of it':>22} {'rows/saved':>18} {'restarts':>8}  records"


def part(*key: object) -> float:
    """Return a number in [0, 1) that the key decides."""
    return int(hashlib.sha256(repr(key).encode()).hexdigest()[:8], 16) / 2**32


def chosen(kills: int, seed: int) -> list[Kill]:
    """Return the kills, phases in turn."""
    phases = [list(CALLS)[at % len(CALLS)] for at in range(kills)]
    return [
        Kill(phase=phase, call=1 + int(part(seed, at, "call") * CALLS[phase]), after=part(seed, at, "after"))
        for at, phase in enumerate(phases)
    ]


def ran(model: Path, folder: Path, kill: Kill | None = None) -> int:
    """Run the suite in a working directory, to its end or to the kill; return the driver's exit status."""
    words = arguments(model, ARMS, words=["--jobs", "2", "--device", "cpu"], changes=HARD)
    env = dict(os.environ)
    if kill is not None:
        env |= {"KILL_PHASE": kill.phase, "KILL_CALL": str(kill.call), "KILL_AFTER": str(kill.after)}
        env |= {"KILL_SECONDS": str(SECONDS[kill.phase]), "KILL_NOTE": str(folder / "note.json")}
        env["PYTHONPATH"] = os.pathsep.join([str(KILLER), *filter(None, [env.get("PYTHONPATH")])])
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "bench.run", *words]
        return subprocess.run(
            command, cwd=folder, env=env, stdout=log, stderr=log, check=False, start_new_session=True
        ).returncode


def records(folder: Path) -> dict[str, Any]:
    """Return all that a working directory's suite has recorded, by file, less what a clock or memory decides."""
    suite = folder / "runs" / "tiny"
    return {str(path.relative_to(suite)): value for path in sorted(suite.rglob("*")) for value in _content(path)}


def _content(path: Path) -> Iterator[Any]:
    """Yield what a file says, if it is a record and no log, lock, checkpoint or description of the machine."""
    if path.suffix == ".part":
        yield "a temporary file is left"
    elif path.is_dir() or path.parent.name == "checkpoints" or path.name in (".lock", "environment.json"):
        return
    elif path.name == "metrics.jsonl":
        yield [_timeless(row) for row in read_rows(path)]
    elif path.name == "result.json":
        yield _timeless(json.loads(path.read_text()))
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            yield {name: arrays[name].tolist() for name in arrays.files}
    elif path.suffix != ".log":
        yield path.read_bytes()


def _timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in CLOCK}


def on_disk(folder: Path) -> str:
    """Return how many rows every begun cell has, and how many iterations its newest checkpoint."""
    said = []
    for config in sorted((folder / "runs" / "tiny").glob("*/config.yaml")):
        saved = sorted(config.parent.glob("checkpoints/*.pt"))
        rows = len(list(read_rows(config.parent / "metrics.jsonl")))
        said.append(f"{rows}/{int(saved[-1].stem) if saved else 0}")
    return " ".join(said)


def alive(pids: Sequence[int]) -> list[int]:
    """Return the processes that still run some seconds on; a killed one may take a moment to be gone."""
    deadline = time.monotonic() + 5
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def survived(model: Path, folder: Path, kill: Kill, reference: Mapping[str, Any]) -> Survived:
    """Kill a run, finish it, and compare its records."""
    status = ran(model, folder, kill)
    note = json.loads((folder / "note.json").read_text()) if (folder / "note.json").is_file() else None
    survivors = alive(note["killed"]) if note else []
    left, statuses = on_disk(folder), []
    while 0 not in statuses and len(statuses) < RESTARTS:
        statuses.append(ran(model, folder))
    found = records(folder)
    differ = sorted(name for name in reference.keys() | found.keys() if reference.get(name) != found.get(name))
    if not (folder / "reports" / "tiny" / "index.html").is_file():
        differ.append("no report")
    return Survived(
        kill=kill, note=note, status=status, survivors=survivors, on_disk=left, statuses=statuses, differ=differ
    )


def uninterrupted(model: Path, folder: Path) -> dict[str, Any]:
    """Return the records of a run that nothing happens to."""
    status = ran(model, folder)
    if status:
        raise SystemExit(f"the uninterrupted run failed ({status}):\n{(folder / 'log.txt').read_text()}")
    suite = yaml.safe_load((folder / "runs" / "tiny" / "suite.yaml").read_text())
    assert suite["arms"] == ARMS.split(",")
    return records(folder)


def main() -> int:
    from bench.models.tiny import make_tiny

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny("flux", folder / "model", seed=0)
        reference = uninterrupted(folder / "model", folder / "uninterrupted")
        print(f"{len(reference)} files of the uninterrupted run to compare with\n{HEADING}", flush=True)
        found = []
        for at, kill in enumerate(chosen(args.kills, args.seed)):
            found.append(survived(folder / "model", folder / f"killed-{at}", kill, reference))
            print(found[-1].line(), flush=True)
    good = sum(one.equal and one.as_meant for one in found)
    print(f"{good} of {len(found)} kills left the records of an uninterrupted run")
    return 0 if good == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
