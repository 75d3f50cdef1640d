"""Files that scorers read: where they are, and which contents they have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from shlex import quote as quoted

from bench.contract import HubFile, WebFile
from bench.environment import cache_folder
from bench.models.hub import Repository, commit_of, snapshot
from bench.registry import InputError


def located(reward: str, file: HubFile | WebFile, folder: str = "") -> Path:
    """Return where a file is on this machine.

    Args:
        reward: who reads it.
        file: of the hub, or of the web.
        folder: that has it, by its path in the repository or its name alone; empty for where `bench prepare` keeps it.

    Raises:
        FileNotFoundError: if it is not there, or has another size, with its size and the command that fetches it.
    """
    places = _places(file, folder)
    path = next((place for place in places if place.is_file()), places[0])
    fetches = f"`bench prepare --rewards {quoted(reward)}` fetches it"
    remedy = f"copy it to {folder}, or leave `weights` out" if folder else fetches
    if not path.is_file():
        what = f"{path.name}{_size(file)} of {file.origin}"
        raise FileNotFoundError(f"reward {reward!r} reads {what}, which is not on this machine: {remedy}")
    if not folder and path == places[0] and file.size and path.stat().st_size != file.size:
        raise FileNotFoundError(f"{path} has {path.stat().st_size:,} bytes and not {file.size:,}: delete it, {remedy}")
    return path


def check_files(name: str, files: Sequence[HubFile | WebFile], folder: str) -> None:
    """Raise InputError unless a scorer's files are on this machine."""
    if folder and not Path(folder).is_dir():
        raise InputError(f"{name}: weights={folder} is no folder")
    for file in files:
        if isinstance(file, HubFile) and file.optional:
            continue
        try:
            located(name, file, folder)
        except FileNotFoundError as error:
            raise InputError(str(error)) from error


def _places(file: HubFile | WebFile, folder: str) -> list[Path]:
    """Return where a file may be, best first: where `bench prepare` keeps it, or in a user's folder.

    There it has its path in the repository, as a clone has it, or its name alone.
    """
    if folder:
        return [Path(folder) / name for path in file.paths for name in dict.fromkeys((path, Path(path).name))]
    if isinstance(file, WebFile):
        return [kept() / file.file]
    here = snapshot(repository(file))
    return [Path(path) if here is None else here / path for path in file.paths]


def kept() -> Path:
    """Return the folder of files that are not of the hub."""
    return cache_folder() / "weights"


def repository(file: HubFile) -> Repository:
    """Return the repository that a file is of."""
    return Repository(name=file.repository, revision=file.revision, kind=file.kind)


def revision(files: Sequence[HubFile | WebFile], folder: str, rule: str, *, beside: str = "") -> str:
    """Return the revision of a scorer: of its rule, and of the contents of its files.

    Args:
        files: that it reads.
        folder: that has them, as a user says.
        rule: changes whenever the same weights may score an image differently.
        beside: the name of a file of the folder that says how to read them, if it is there.
    """
    own = [file for file in files if folder or isinstance(file, WebFile)]
    there = [next((place for place in _places(file, folder) if place.is_file()), None) for file in own]
    there += [path for path in [Path(folder) / beside] if folder and beside and path.is_file()]
    read = tuple((path, path.stat().st_mtime_ns) for path in there if path is not None)
    hub = [] if folder else [file for file in files if isinstance(file, HubFile)]
    commits = [commit_of(here) for file in hub if (here := snapshot(repository(file)))]
    parts = [rule, *dict.fromkeys(commit[:12] for commit in commits if commit)]
    return "+".join([*parts, _digest(read)] if read else parts)


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int], ...]) -> str:
    sha = hashlib.sha256()
    for path, _ in files:
        sha.update(path.name.encode())
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:12]


def spoken(size: int) -> str:
    """Return a number of bytes as text."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u), (1.0, "B"))
    return f"{size / unit:.3g} {name}"


def _size(file: HubFile | WebFile) -> str:
    return f" ({'about ' * (not file.size)}{spoken(file.size or file.about)})" if file.size or file.about else ""
