"""Workers as forks of one process that has paid for the imports: `python zygote.py`.

A line of standard input is a list of jobs, {"suite": folder, "cells": names, "workers": how many at once, "die": where
a worker kills itself, "ran": file, "listing": file, "largest": bytes of a file, "processes": of one run, as torchrun
starts them, "parallel": how, "trackers": names}, run one after another. The answer, a line of standard output, is the
exit codes of each job's workers, -9 for a killed one.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

LIMIT = 180.0
"""Seconds that a job may take; the longest takes a few."""


def preload() -> None:
    """Import what every worker imports."""
    import diffusers.models.autoencoders.autoencoder_kl
    import diffusers.models.transformers.transformer_flux
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    import bench.models.flux
    import bench.worker

    del AutoTokenizer, CLIPTextModel, T5EncoderModel, diffusers, bench


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def at_call(module: Any, name: str, number: int, act: Callable[..., Any]) -> None:
    """Let the call of that number (from 1) of `module.name` be a call of `act`."""
    original, calls = getattr(module, name), 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (act if calls == number else original)(*args, **kwargs)

    setattr(module, name, called)


def between_iterations(at: int) -> None:
    from bench import loop

    at_call(loop, "iterate", at, lambda *_: die())


def in_row(at: int) -> None:
    from bench import record

    def half(path: Path, row: Mapping[str, Any]) -> None:
        text = json.dumps(row)
        with path.open("a") as file:
            file.write(text[: len(text) // 2])
        die()

    at_call(record, "append_row", at, half)


def in_checkpoint(at: int) -> None:
    import torch

    save = torch.save

    def half(state: Any, file: IO[bytes]) -> None:
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        die()

    at_call(torch, "save", at, half)


def in_pipeline(at: int) -> None:
    from bench.models.flux import Flux

    def half(_: Flux, folder: Path) -> None:
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer" / "config.json").write_text("{")
        die()

    at_call(Flux, "save", at, half)


def before_done(at: int) -> None:
    from bench import judge

    at_call(judge, "make_result", at, lambda *_: die())


DEATHS = {f.__name__: f for f in (between_iterations, in_row, in_checkpoint, in_pipeline, before_done)}


def log_runs(file: str) -> None:
    """Let a worker say in a file which cells it runs."""
    from bench.worker import Worker

    original = Worker.run

    def run(self: Worker, folder: Path) -> None:
        with Path(file).open("a") as log:
            log.write(f"{folder.name}\n")
        original(self, folder)

    Worker.run = run


def worker(job: Mapping[str, Any]) -> int:
    import torch

    from bench import processes
    from bench.worker import Worker, work

    if job.get("listing"):
        folder = Path(job["suite"], job["cells"][0])
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        Path(job["listing"]).write_text("\n".join(names))
    if job.get("largest"):  # as on a full disk, a write fails, in the middle if it must
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest"], resource.RLIM_INFINITY))
    if job.get("die"):
        where, at = job["die"]
        DEATHS[where](at)
    if job.get("ran"):
        log_runs(job["ran"])
    device, processes.PATIENCE = torch.device("cpu"), 2.0
    found = processes.join(device)
    made = Worker(
        suite=Path(job["suite"]),
        device=device,
        processes=found,
        parallel=job.get("parallel", "ddp"),
        trackers=tuple(job.get("trackers", ())),
    )
    failed = work(made, job["cells"])
    processes.leave()
    return failed


def places(job: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what torchrun would tell each worker by its environment."""
    count = job.get("processes", 1)
    if count == 1:
        return [{}] * job.get("workers", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [
        where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)} for rank in range(count)
    ]


def forked(job: Mapping[str, Any], place: Mapping[str, str]) -> int:
    """Start a worker; return its process number."""
    child = os.fork()
    if child:
        return child
    status = 70
    os.environ.update(place)
    try:
        status = worker(job)
    except BaseException:  # noqa: BLE001  # a fork says what went wrong, then ends
        traceback.print_exc()
    finally:
        with suppress(OSError):  # what it says may go into a file that must not grow
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(children: Sequence[int]) -> list[int]:
    """Return the exit codes of workers, -9 of those that do not come to an end: processes that wait for each other."""
    codes, until = dict[int, int](), time.monotonic() + LIMIT
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, os.WNOHANG if time.monotonic() <= until else 0)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what workers print is no answer
    preload()
    gc.freeze()  # what is shared with all forks is neither looked through by each nor copied for it
    for line in sys.stdin:
        jobs, said = json.loads(line), []
        for job in jobs:
            children = [forked(job, place) for place in places(job)]
            said.append(ended(children))
        print(json.dumps(said), file=answer, flush=True)


if __name__ == "__main__":
    main()
