"""`python -m rewards.packages hpsv2 DIR` makes an environment that has the package, and nothing of ours."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rewards.packages import WORKER, python_of

HERE = Path(__file__).parent
PACKAGES = ("hpsv2", "image-reward")
PYTHONS = ((3, 11), (3, 12))
"""The first and the last that the pinned versions have wheels for, and the worker runs on; 3.11 was tried."""
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
Run = Callable[[Sequence[str]], str]


def main(words: Sequence[str] | None = None) -> int:
    """Make an environment, as the command line says."""
    about = "Make an environment for a package whose pins cannot live with others: about 5 GB, most of it torch."
    parser = argparse.ArgumentParser(prog="python -m rewards.packages", description=about, allow_abbrev=False)
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="is made; may be there if it is empty")
    parser.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="3.11 or 3.12 (default: the one that runs this)"
    )
    parser.add_argument("--pip", action="store_true", help="do without uv, also where it is there")
    args = parser.parse_args(words)
    try:
        make(args.package, args.folder, args.python, uv="" if args.pip else shutil.which("uv") or "")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"{parser.prog}: {_said(error)}", file=sys.stderr)
        return 1 if isinstance(error, subprocess.CalledProcessError) else 2
    print(f"{args.folder} has {args.package}; this serves its scores, with the published files in FOLDER:")
    print(f"  {python_of(args.folder)} {WORKER} --package {args.package} --weights FOLDER --port 8001")
    print("and --rewards 'remote(http://127.0.0.1:8001)' scores by it")
    return 0


def make(package: str, folder: Path, python: str, *, uv: str = "", run: Run | None = None) -> None:
    """Make an environment, and import the package in it.

    Args:
        package: one of `PACKAGES`.
        folder: of the environment.
        python: that it is made of.
        uv: the program; empty for `venv` and `pip`.
        run: a command, for what it prints.

    Raises:
        ValueError: for a folder that is in use, or a Python that the pinned versions have no wheels for.
        subprocess.CalledProcessError: for a command that fails.
    """
    run = run or _run
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there, and not an empty folder: name another")
    found = tuple(int(part) for part in run([python, "-c", "import sys; print(*sys.version_info[:2])"]).split())
    if not PYTHONS[0] <= found <= PYTHONS[1]:
        wanted = " to ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise ValueError(f"{python} is Python {found[0]}.{found[1]}: name one of {wanted} by --python FILE")
    run([uv, "venv", "--python", python, str(folder)] if uv else [python, "-m", "venv", str(folder)])
    inside = str(python_of(folder))
    install = [uv, "pip", "install", "--python", inside] if uv else [inside, "-m", "pip", "install"]
    run([*install, "-r", str(HERE / f"{package}.txt")])
    if package == "hpsv2":
        supply_vocabulary(Path(run([inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()))
    run([inside, str(WORKER), "--package", package, "--check"])


def supply_vocabulary(site: Path) -> None:
    """Copy open_clip's vocabulary to where hpsv2 looks for its own: the same file, which its wheel lacks."""
    shutil.copyfile(site / "open_clip" / VOCABULARY, site / "hpsv2" / "src" / "open_clip" / VOCABULARY)


def _run(command: Sequence[str]) -> str:
    print("$", *command, flush=True)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"`{' '.join(error.cmd)}` failed with status {error.returncode}; what it said is above"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
