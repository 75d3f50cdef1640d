"""What models, rewards and prompts need from the hub: listed with sizes and licences, fetched, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.contract import HubFile
from bench.data import load_prompts
from bench.datasets import HUB, hub_set, names_of
from bench.models.hub import Listing, MissingError, Repository, fetch, listing, offline, snapshot
from bench.models.layout import checked_index, flaws, lacking_parts, needed, without_safetensors
from bench.models.source import (
    CONFIGURATIONS,
    ModelSource,
    check_generation,
    family_of,
    known_as,
    repository_of,
    resolve_model,
)
from bench.registry import InputError, Registry, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A repository of the hub, and what of it is wanted."""

    title: str
    repository: Repository
    files: Mapping[str, int] = field(default_factory=dict)
    """Paths in it, with their sizes in bytes, 0 where that is not known; empty where the hub tells what is wanted."""
    model: str = ""
    """The model's name as given, of a pipeline."""
    prompts: str = ""
    """The set's name as given, of prompts."""
    licence: str = ""
    restrictions: str = ""
    size: int = 0
    """Bytes, about, where the hub cannot be asked."""


TRANSFORMER = "transformer/config.json"
"""What tells models of one class apart, beside the index."""

Say = Callable[[str], None]


def wanted(model: str | None, rewards: Sequence[str], prompts: str | None, plugins: Sequence[Path]) -> list[Item]:
    """Return what is to be had from the hub; what is no affair of the hub is checked at once.

    Raises:
        InputError: for unknown names, and for a local folder or file that something is wrong with.
    """
    items = [] if model is None else _of_model(model, plugins)
    registry = load("rewards", plugins)
    for name in rewards:
        items += _of_reward(name, registry.get(name))
    if prompts is not None and not prompts.startswith(HUB):
        load_prompts(prompts)
    elif prompts is not None:
        named = hub_set(prompts)
        repository = Repository(name=named.repo, revision=named.revision or "", kind="dataset")
        items.append(Item(title=f"prompts {prompts}", repository=repository, prompts=prompts))
    return items


def prepare(item: Item, plugins: Sequence[Path], say: Say, *, dry_run: bool) -> bool:
    """Say what an item is made of, fetch what is not here unless it is a dry run; return whether all of it is here.

    Raises:
        InputError: if the hub has no such repository, revision or file, a file is not what was expected, or a run
            would refuse the pipeline.
        MissingError: if something cannot be fetched now.
    """
    say(f"{item.title}: {item.repository}")
    here = complete(item)
    if here is not None:
        if item.model:
            resolve_model(item.model, plugins)
        say(f"  {_terms(item, None)}")
        say(f"  here, commit {here.name}")
        return True
    try:
        told = listing(item.repository)
    except MissingError:
        say(f"  {_terms(item, None)}")
        if item.size:
            say(f"  about {spoken(item.size)}, as far as is known without the hub")
        raise
    files = _files(item, told, plugins)
    say(f"  {_terms(item, told)}")
    folder = snapshot(item.repository)
    there = {file for file in files if _is_here(folder, file, told.sizes[file])}
    for file in files:
        say(f"  {spoken(told.sizes[file]):>9}  {'here' if file in there else 'to fetch':8}  {file}")
    total, rest = (sum(told.sizes[file] for file in files if file not in left) for left in ((), there))
    say(f"  {spoken(total)} in {len(files)} files, {spoken(rest)} to fetch, commit {told.commit}")
    if dry_run:
        return not rest
    folder = fetch(item.repository, files, told.sizes)
    _check(item, folder, plugins)
    say(f"  here, commit {folder.name}")
    return True


def complete(item: Item) -> Path | None:
    """Return the folder with what is wanted, if all of it is known to be on this machine."""
    folder = snapshot(item.repository)
    if folder is None or (item.prompts and not offline()):
        return None
    if item.prompts:
        return folder if _readable(item.prompts) else None
    if item.model:
        whole = _is_whole(item.model, folder)
    else:
        whole = all(_is_here(folder, file, size) for file, size in item.files.items())
    return folder if whole else None


def check_scorers(names: Iterable[str], registry: Registry) -> None:
    """Raise InputError if a scorer reads a file of the hub that is not on this machine."""
    for name in names:
        for item in _of_reward(name, registry.get(name)):
            if complete(item) is None:
                files = ", ".join(item.files)
                raise InputError(
                    f"reward {name!r} reads {files} of {item.repository}, which is not on this machine: "
                    f"`bench prepare --rewards {name}` fetches it"
                )


def spoken(size: int) -> str:
    """Return a number of bytes as text."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u), (1.0, "B"))
    return f"{size / unit:.3g} {name}"


def _of_model(model: str, plugins: Sequence[Path]) -> list[Item]:
    entry, repository = known_as(model, plugins), repository_of(model, plugins)
    if repository is None or Path(model).is_dir():
        resolve_model(model, plugins)
        return []
    known = {} if entry is None else {"licence": entry.licence, "restrictions": entry.restrictions, "size": entry.size}
    return [Item(title=f"model {model}", repository=repository, model=model, **known)]


def _of_reward(name: str, scorer: Any) -> list[Item]:
    """Return the repositories that a scorer reads files of."""
    files: tuple[HubFile, ...] = getattr(scorer, "files", ())
    groups: dict[Repository, list[HubFile]] = {}
    for file in files:
        groups.setdefault(Repository(name=file.repository, revision=file.revision, kind=file.kind), []).append(file)
    return [
        Item(
            title=f"reward {name}",
            repository=repository,
            files={file.file: file.size for file in group},
            licence=", ".join(dict.fromkeys(file.licence for file in group)),
            restrictions="; ".join(dict.fromkeys(file.restrictions for file in group if file.restrictions)),
            size=sum(file.size for file in group),
        )
        for repository, group in groups.items()
    ]


def _files(item: Item, told: Listing, plugins: Sequence[Path]) -> list[str]:
    """Return which of a repository's files are wanted, in an order that is the same each time.

    Raises:
        InputError: for one that is not there, or of another size than its scorer knows.
    """
    if item.model:
        index = _index(item, told, plugins)
        lacking = without_safetensors(index, told.sizes)
        if lacking:
            raise InputError(
                f"{item.repository} has no safetensors of {', '.join(lacking)}: other weights are not read"
            )
        short = lacking_parts(index, told.sizes)
        if short:
            raise InputError(f"{item.repository} is not complete: {', '.join(short)}; give another repository")
        return [file for file in needed(index, sorted(told.sizes)) if file in told.sizes]
    if item.prompts:
        chosen = names_of(hub_set(item.prompts))
        return sorted({*chosen.train, *chosen.test})
    for file, size in item.files.items():
        if file not in told.sizes:
            raise InputError(f"{item.repository} has no {file}: {item.title} is of another revision of it")
        if size not in (0, told.sizes[file]):
            raise InputError(
                f"{file} of {item.repository} has {told.sizes[file]:,} bytes, and {item.title} knows one of {size:,}: "
                "it is of another revision"
            )
    return sorted(item.files)


def _index(item: Item, told: Listing, plugins: Sequence[Path]) -> dict[str, Any]:
    """Return the model_index.json of a pipeline on the hub; of a model that is known, the program's own.

    What tells whether an adapter drives it is looked at first: a few kilobytes of what may be a hundred gigabytes.

    Raises:
        InputError: if there is none, it is a pipeline of no known family, or of a kind that no adapter drives.
    """
    known = CONFIGURATIONS / item.model
    if known.is_dir():
        return checked_index(item.model, known)
    with TemporaryDirectory() as place:
        folder = fetch(item.repository, ["model_index.json"], {}, into=Path(place))
        source = ModelSource(family=family_of(item.model, folder, plugins), folder=folder)
        check_generation(item.model, source)
        if TRANSFORMER in told.sizes:
            fetch(item.repository, [TRANSFORMER], {}, into=Path(place))
            check_generation(item.model, source)
        return checked_index(item.model, folder)


def _is_whole(model: str, folder: Path) -> bool:
    """Return whether a pipeline's folder lacks nothing; a damaged index, too, is to be fetched anew."""
    if not (folder / "model_index.json").is_file():
        return False
    try:
        index = checked_index(model, folder)
    except InputError:
        return False
    return not any(flaws(folder, index))


def _is_here(folder: Path | None, file: str, size: int) -> bool:
    path = None if folder is None else folder / file
    return path is not None and path.is_file() and size in (0, path.stat().st_size)


def _check(item: Item, folder: Path, plugins: Sequence[Path]) -> None:
    """Raise InputError unless what was fetched is what was wanted."""
    if item.model:
        resolve_model(item.model, plugins)
    elif item.prompts:
        load_prompts(item.prompts)
    elif complete(item) is None:
        raise InputError(f"{folder} lacks some of {', '.join(item.files)}: remove it, and run the command again")


def _readable(prompts: str) -> bool:
    """Return whether a set of prompts can be read without the hub."""
    try:
        load_prompts(prompts)
    except InputError:
        return False
    return True


def _terms(item: Item, told: Listing | None) -> str:
    """Return an item's licence and restrictions in a line."""
    licence = item.licence or (told.licence if told else "") or "not stated"
    gate = "gated" if told and told.gated and "gated" not in item.restrictions else ""
    return f"licence: {'; '.join(part for part in (licence, item.restrictions, gate) if part)}"
