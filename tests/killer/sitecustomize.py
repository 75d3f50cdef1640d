"""On PYTHONPATH, this ends a run from inside a chosen phase: the driver and all its workers, by SIGKILL.

The environment says how: KILL_PHASE is a key of PHASES, KILL_CALL the call of it (from 1, of each process) that is
not survived, KILL_AFTER the part of it that passes before (of `KILL_SECONDS`, or of a checkpoint's bytes), and
KILL_NOTE the file that says who was killed. The first process to come there writes the note, and nobody kills twice.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

PHASES = {
    "rollout": ("bench.loop", "shared_rollout"),
    "update": ("bench.loop", "update"),
    "checkpoint": ("bench.checkpoint", "torch"),
    "base": ("bench.judge", "base_evaluations"),
    "evaluation": ("bench.judge", "judge"),
    "report": ("reports.build", "build"),
}
"""The module that calls a phase's function, and the function's name there."""


class Ended:
    """The end of a run, once it is decided."""

    def __init__(self, phase: str, call: int, after: float, seconds: float, note: Path) -> None:
        self.phase, self.call, self.after, self.seconds, self.note = phase, call, after, seconds, note
        self.calls = 0

    def due(self) -> bool:
        """Return whether this call is the last."""
        self.calls += 1
        return self.calls == self.call

    def kill(self, **said: Any) -> None:
        """Kill the driver, its other workers and this process, unless another process has begun to."""
        try:
            file = os.open(self.note, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        driver = os.getpid() if self.phase == "report" else os.getppid()
        workers = [int(pid) for pid in Path(f"/proc/{driver}/task/{driver}/children").read_text().split()]
        os.write(
            file, json.dumps({"phase": self.phase, "by": os.getpid(), "killed": [driver, *workers]} | said).encode()
        )
        os.fsync(file)
        for pid in [p for p in (driver, *workers) if p != os.getpid()]:
            os.kill(pid, signal.SIGKILL)
        _die()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function; from inside its last call the run ends, in the middle or as it returns."""

        def called(*args: Any, **kwargs: Any) -> Any:
            if not self.due():
                return function(*args, **kwargs)
            threading.Thread(target=lambda: (time.sleep(self.after * self.seconds), self.kill()), daemon=True).start()
            answer = function(*args, **kwargs)
            self.kill()
            return answer

        return called

    def in_file(self, save: Callable[..., None]) -> Callable[..., None]:
        """Return `torch.save`; of its last call a part of the bytes is written, and then the run ends."""

        def saved(state: Any, file: Any) -> None:
            if not self.due():
                return save(state, file)
            whole = io.BytesIO()
            save(state, whole)
            part = max(1, round(self.after * whole.tell()))
            file.write(whole.getvalue()[:part])
            file.flush()
            self.kill(bytes=part, of=whole.tell())
            return save(state, file)

        return saved

    def arm(self, module: ModuleType, name: str) -> None:
        """Put the end into a module."""
        if self.phase == "checkpoint":
            torch = getattr(module, name)
            torch.save = self.in_file(torch.save)
        else:
            setattr(module, name, self.around(getattr(module, name)))


class Watching:
    """Finds modules as Python does, and arms one once it is loaded."""

    def __init__(self, module: str, loaded: Callable[[ModuleType], None]) -> None:
        self.module, self.loaded = module, loaded

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of the one module, with a loader that arms it."""
        if name != self.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert isinstance(spec.loader, Loader)
        load = spec.loader.exec_module

        def loading(module: ModuleType) -> None:
            load(module)
            self.loaded(module)

        spec.loader.exec_module = loading
        return spec


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def watch() -> None:
    """Wait for the phase that the environment names."""
    get = os.environ.__getitem__
    phase = get("KILL_PHASE")
    end = Ended(
        phase, int(get("KILL_CALL")), float(get("KILL_AFTER")), float(get("KILL_SECONDS")), Path(get("KILL_NOTE"))
    )
    module, name = PHASES[phase]
    sys.meta_path.insert(0, Watching(module, lambda loaded: end.arm(loaded, name)))


if "KILL_PHASE" in os.environ:
    watch()
