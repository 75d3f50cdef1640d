"""Where a cell ran: versions, machine, threads, commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "scipy")


def torchrun() -> tuple[int, int]:
    """Return this process's rank, and how many processes torchrun started for this run: (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def environment(device: str, threads: int, processes: int = 1, parallel: str = "ddp") -> dict[str, Any]:
    """Return what a reader needs to judge whether two records are comparable bit for bit."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        "processes": processes,
        "parallel": parallel if processes > 1 else "none",
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def cpu_name() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gpu_bytes() -> int | None:
    """Return the memory of this machine's smallest NVIDIA GPU, as its driver tells; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    run = subprocess.run(asked, capture_output=True, text=True, check=False)
    mebibytes = [int(line) for line in run.stdout.split() if line.isdigit()]
    return min(mebibytes) * 2**20 if run.returncode == 0 and mebibytes else None


def _commit() -> str:
    """Return the checkout's commit, marked `dirty` where files differ; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    run = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip()


def cache_folder() -> Path:
    """Return where encoded prompts are kept: $ARBOR_CACHE, or arbor in the user's cache folder."""
    if os.environ.get("ARBOR_CACHE"):
        return Path(os.environ["ARBOR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arbor"
