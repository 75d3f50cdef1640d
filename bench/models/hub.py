"""Repositories of the Hugging Face hub: which of their files are on this machine, what they hold, and fetching them.

Of models only `bench prepare` asks the hub; runs look at its cache on this machine alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.registry import InputError

ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
Kind = Literal["model", "dataset"]


class MissingError(RuntimeError):
    """What cannot be fetched now, in one line with its remedy: gated, offline, or broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository of the hub at a revision."""

    name: str
    """Owner/name."""
    revision: str = ""
    """A branch, tag or commit; empty for the main branch."""
    kind: Kind = "model"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def page(self) -> str:
        """Return the address at which its licence is accepted."""
        return f"https://huggingface.co/{'datasets/' * (self.kind == 'dataset')}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the hub says of a repository."""

    commit: str
    sizes: Mapping[str, int]
    """File -> bytes."""
    licence: str
    gated: bool
    """Whether its files are handed out only to those who accepted its licence."""


def hub_id(text: str, kind: Kind = "model") -> Repository | None:
    """Return the repository of `owner/name` or `owner/name@revision`; None for other text."""
    match = ID.fullmatch(text)
    if match is None or ".." in text:
        return None
    return Repository(name=match["repository"], revision=match["revision"] or "", kind=kind)


def snapshot(repository: Repository) -> Path | None:
    """Return the folder with what is here of a repository's revision, complete or not; None if nothing is."""
    cache, revision = _cache(repository), repository.revision or "main"
    ref = cache / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = cache / "snapshots" / commit
    return folder if folder.is_dir() else None


def revisions_here(repository: Repository) -> list[str]:
    """Return the branches and commits of a repository that are on this machine."""
    cache = _cache(repository)
    refs, snapshots = cache / "refs", cache / "snapshots"
    branches = [path.relative_to(refs).as_posix() for path in sorted(refs.rglob("*")) if path.is_file()]
    return branches + [path.name for path in sorted(snapshots.glob("*"))]


def commit_of(folder: Path) -> str:
    """Return the commit that a folder in the hub's cache holds; empty for other folders."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else ""


def listing(repository: Repository) -> Listing:
    """Ask the hub what a repository holds.

    Raises:
        InputError: if there is no such repository or revision.
        MissingError: if the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    with _told(repository):
        info: Any = HfApi().repo_info(
            repository.name, revision=repository.revision or None, repo_type=repository.kind, files_metadata=True
        )
    card = info.card_data or {}
    licence = card.get("license_name") or card.get("license") or ""
    return Listing(
        commit=info.sha,
        sizes={file.rfilename: file.size or 0 for file in info.siblings or ()},
        licence=", ".join(licence) if isinstance(licence, list) else str(licence),
        gated=bool(info.gated),
    )


def fetch(repository: Repository, files: Sequence[str], sizes: Mapping[str, int], into: Path | None = None) -> Path:
    """Fetch those of a repository's files that are not here, or not whole; return their folder.

    Args:
        repository: of the hub.
        files: paths in it.
        sizes: bytes of each, as the hub says; what is here and has another size is fetched anew.
        into: the cache to keep them in; none is the machine's.

    Raises:
        InputError: if there is no such repository or revision.
        MissingError: if a file cannot be had.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    revision = repository.revision or "main"
    here = snapshot(repository)
    with _told(repository):
        for file in files:
            if into is None and here is not None and _differs(here / file, sizes[file]):
                hf_hub_download(
                    repository.name, file, revision=revision, repo_type=repository.kind, force_download=True
                )
        folder = snapshot_download(
            repository.name, revision=revision, repo_type=repository.kind, allow_patterns=list(files), cache_dir=into
        )
    return Path(folder)


def _differs(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size != size


@contextmanager
def _told(repository: Repository) -> Iterator[None]:
    """Turn what the hub's client raises into a line that names the remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise MissingError(
            f"{repository.name} is gated: accept its licence on {repository.page}, then `hf auth login` on this machine"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no {repository.kind} {repository.name}, or it is private: check the name, or `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{repository.name} has no revision {repository.revision!r}; it has {', '.join(_revisions(repository))}"
        ) from error
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        # The client's own errors are of these two kinds, that of its offline mode included.
        again = "the same command goes on from here"
        raise MissingError(f"{repository.name} cannot be had: {_reason(error)}; {again}") from error


def offline() -> bool:
    """Return whether the hub is not to be asked."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _reason(error: Exception) -> str:
    if offline():
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _revisions(repository: Repository) -> list[str]:
    from huggingface_hub import HfApi

    refs = HfApi().list_repo_refs(repository.name, repo_type=repository.kind)
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _cache(repository: Repository) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repository.kind}s--{repository.name.replace('/', '--')}"
