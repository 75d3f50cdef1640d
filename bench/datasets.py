"""What `--prompts` names -> files on this machine: a file, a folder with a train and a test split, a hub dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bench.prompts import READERS, first_line
from bench.registry import InputError, nearest

HUB = "hub:"
SPEC = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@\s]+))?(:(?P<names>[^:]+))?")
SPLIT = re.compile(r"(?<![a-z0-9])(train|test)(?![a-z0-9])", re.IGNORECASE)
ENDS = f"that ends in {', '.join(READERS)}"
SHOWN = 8
"""Files that a message lists, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of prompts."""

    path: Path
    name: str
    """What messages call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of a prompt set."""

    train: tuple[File, ...]
    """All of them, where the set has no test split."""
    test: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """A dataset on the hub, as `hub:OWNER/NAME[@REVISION][:FILE,...]` names it."""

    source: str
    repo: str
    revision: str | None
    names: tuple[str, ...]
    """Files in the repository, or one folder, with a slash at its end; empty for what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Names of files, split by split."""

    train: tuple[str, ...]
    test: tuple[str, ...] = ()


def located(source: str) -> Files:
    """Return the files of a prompt set, those of a hub dataset fetched.

    Raises:
        InputError: if there are none, or several sets to choose from.
    """
    if source.startswith(HUB):
        return _fetched(hub_set(source))[0]
    path, name = Path(source), f"prompts={source!r}"
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.is_file())
        return _files(chosen([n for n in names if _is_set(n)], name, f"{path}/FILE"), path, name)
    if not path.is_file():
        raise InputError(
            f"{name}: no such file; give a text file with one prompt a line, .jsonl, .json, .csv, .parquet, "
            "a folder of such, hub:OWNER/NAME, or world"
        )
    return Files(train=(File(path=path, name=name),))


def pinned(source: str) -> str:
    """Return a name that means the same files from now on: of a hub dataset its commit and files, fetched."""
    return _fetched(hub_set(source))[1] if source.startswith(HUB) else source


def hub_set(source: str) -> HubSet:
    """Return what the name of a hub dataset says.

    Raises:
        InputError: if it is none.
    """
    match = SPEC.fullmatch(source)
    if match is None or ".." in (match["names"] or "") or (match["names"] or "").startswith("/"):
        raise InputError(f"prompts={source!r}: hub:OWNER/NAME[@REVISION][:FILE] is wanted, as in hub:ymhao/HPDv2")
    names = tuple(name for name in (match["names"] or "").split(",") if name)
    return HubSet(source=source, repo=match["repo"], revision=match["revision"], names=names)


def chosen(names: Sequence[str], name: str, prefix: str) -> Chosen:
    """Return which of a set's files are its train and its test split, by the words in their names.

    With one split alone, or with a single file, there is no test split: prompts are split by their hash.

    Args:
        names: paths in the set.
        name: what messages call the set.
        prefix: what stands before a file's name where a user names it alone.

    Raises:
        InputError: if nothing or several things could be meant.
    """
    splits = {split: tuple(n for n in names if split_of(n) == split) for split in ("train", "test")}
    found = Chosen(train=splits["train"] or splits["test"], test=splits["test"] if splits["train"] else ())
    if not found.train:
        found = Chosen(train=tuple(names))
    if not names:
        raise InputError(f"{name} has no file of prompts; wanted are a train and a test file, or one, {ENDS}")
    for part in (found.train, found.test):
        if len({_without_shard(n) for n in part}) > 1:
            raise InputError(f"{name} has several files that may be meant; name one, as in {prefix}: {_listed(part)}")
    return found


def split_of(name: str) -> str | None:
    """Return the split that a file's path names, `train` or `test`; the last word counts."""
    words = SPLIT.findall(name)
    return words[-1].lower() if words else None


def _without_shard(name: str) -> str:
    """Return a path without the numbers that tell shards apart, as in train-00000-of-00002.parquet."""
    return re.sub(r"\d{2,}", "0", name)


def _is_set(name: str) -> bool:
    """Return whether a file that nobody named may be one of prompts."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in READERS and (suffix != ".txt" or split_of(name) is not None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _files(names: Chosen, folder: Path, name: str) -> Files:
    train, test = (tuple(File(path=folder / n, name=f"{name}: {n}") for n in p) for p in (names.train, names.test))
    return Files(train=train, test=test)


def _fetched(hub: HubSet) -> tuple[Files, str]:
    """Return the files of a hub dataset, in the hub's cache, and the name by which they stay these."""
    names = names_of(hub)
    parts = (*names.train, *names.test)
    with _reaching(hub):
        folders = {_downloaded(hub, name) for name in parts}
    if len(folders) > 1:
        raise InputError(f"prompts={hub.source!r} changed while it was fetched; run again")
    folder = folders.pop()
    fixed = f"{HUB}{hub.repo}@{folder.name}:{','.join(parts)}"
    return _files(names, folder, f"prompts={hub.source!r}"), fixed


def names_of(hub: HubSet) -> Chosen:
    """Return the files of a hub dataset that are its prompts."""
    source = f"prompts={hub.source!r}"
    prefix = f"{HUB}{hub.repo}{f'@{hub.revision}' if hub.revision else ''}:FILE"
    inside = hub.names[0] if len(hub.names) == 1 and hub.names[0].endswith("/") else ""
    if hub.names and not inside:
        return chosen(hub.names, source, prefix)
    from huggingface_hub import constants

    there = _cached(hub) if constants.HF_HUB_OFFLINE else _listing(hub)
    found = chosen([n for n in there if n.startswith(inside) and _is_set(n)], source, prefix)
    if constants.HF_HUB_OFFLINE and not found.test:
        raise InputError(
            f"{source}: HF_HUB_OFFLINE is set, and the cache has {_listed(found.train)} alone, which may not be all; "
            f"name the file, as in {prefix}"
        )
    return found


def _listing(hub: HubSet) -> list[str]:
    """Return the files of a hub dataset, as the hub tells."""
    from huggingface_hub import HfApi

    with _reaching(hub):
        # Not list_repo_files, which takes half a minute to see that there is no hub.
        return sorted(file.rfilename for file in HfApi().dataset_info(hub.repo, revision=hub.revision).siblings or ())


def _cached(hub: HubSet) -> list[str]:
    """Return the files of a hub dataset that are on this machine."""
    from huggingface_hub import snapshot_download

    with _reaching(hub):
        patterns = [f"*{suffix}" for suffix in READERS if suffix != ".txt"]
        folder = Path(
            snapshot_download(
                hub.repo,
                revision=hub.revision,
                repo_type="dataset",
                local_files_only=True,
                allow_patterns=patterns,
            )
        )
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _downloaded(hub: HubSet, name: str) -> Path:
    """Return the folder of the commit that holds a file of the hub, in the cache."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(hub.repo, name, revision=hub.revision, repo_type="dataset"))
    return path.parents[len(PurePosixPath(name).parts) - 1]


@contextmanager
def _reaching(hub: HubSet) -> Iterator[None]:
    """Turn what the hub's library raises inside into InputError."""
    from huggingface_hub import constants, errors

    source, fetch = f"prompts={hub.source!r}", f"`hf download --repo-type dataset {hub.repo}`"
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{source} is gated: accept its terms on the hub, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{source}: {constants.ENDPOINT} has no such dataset, or hides it; check the name, or `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{source}: no such revision; leave it out for the newest") from error
    except errors.HFValidationError as error:
        raise InputError(f"{source}: {error}") from error
    except errors.RemoteEntryNotFoundError as error:
        known = [name for name in _listing(replace(hub, names=())) if _is_set(name)]
        raise InputError(f"{source}: the dataset has no such file{nearest(hub.names[0], known)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise InputError(f"{source}: {why}, and it is not in the cache; {fetch} brings it") from error
    # Also of its transport, whose own module changes with versions.
    except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise InputError(
            f"{source}: {constants.ENDPOINT} cannot be reached, or fails ({first_line(error)}); try again, or set "
            "HF_HUB_OFFLINE=1 for what is in the cache"
        ) from error
    except OSError as error:
        raise InputError(
            f"{source} cannot be kept in {constants.HF_HUB_CACHE} ({first_line(error)}); make room, or set HF_HOME"
        ) from error
