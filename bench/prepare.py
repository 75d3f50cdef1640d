"""What models, rewards and prompts need from the hub: listed with sizes and licences, fetched, and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.contract import HubFile, WebFile
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
from bench.registry import InputError, load
from bench.scorers import web, weights
from bench.scorers.lookup import check_itself, looked_at
from bench.scorers.weights import spoken


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A repository of the hub, and what of it is wanted."""

    title: str
    repository: Repository
    files: tuple[HubFile, ...] = ()
    """Of it; empty where the hub tells what is wanted."""
    model: str = ""
    """The model's name as given, of a pipeline."""
    prompts: str = ""
    """The set's name as given, of prompts."""
    licence: str = ""
    restrictions: str = ""
    size: int = 0
    """Bytes, about, where the hub cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebItem:
    """A file outside the hub that is wanted."""

    title: str
    file: WebFile


TRANSFORMER = "transformer/config.json"
"""What tells models of one class apart, beside the index."""

Say = Callable[[str], None]


def wanted(
    model: str | None, rewards: Sequence[str], prompts: str | None, plugins: Sequence[Path]
) -> list[Item | WebItem]:
    """Return what is to be had from the hub, or the web; what is no affair of the hub is checked at once.

    Raises:
        InputError: for unknown names, and for a local folder or file that something is wrong with.
    """
    items: list[Item | WebItem] = [] if model is None else [*_of_model(model, plugins)]
    registry = load("rewards", plugins)
    for name in rewards:
        scorer = looked_at(name, registry)
        check_itself(scorer)
        items += _of_reward(name, scorer)
    if prompts is not None and not prompts.startswith(HUB):
        load_prompts(prompts)
    elif prompts is not None:
        named = hub_set(prompts)
        repository = Repository(name=named.repo, revision=named.revision or "", kind="dataset")
        items.append(Item(title=f"prompts {prompts}", repository=repository, prompts=prompts))
    return items


def prepare(item: Item | WebItem, plugins: Sequence[Path], say: Say, *, dry_run: bool) -> bool:
    """Say what an item is made of, fetch what is not here unless it is a dry run; return whether all of it is here.

    Raises:
        InputError: if the hub has no such repository, revision or file, a file is not what was expected, or a run
            would refuse the pipeline.
        MissingError: if something cannot be fetched now.
    """
    if isinstance(item, WebItem):
        return _prepare_web(item, say, dry_run=dry_run)
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
        whole = all(_chosen(folder, file) for file in item.files if not file.optional)
    return folder if whole else None


def _prepare_web(item: WebItem, say: Say, *, dry_run: bool) -> bool:
    """Do for a file of the web what `prepare` does for a repository."""
    file, here = item.file, web.is_here(item.file)
    say(f"{item.title}: {file.address}")
    say(f"  licence: {file.licence}")
    size = f"{'' if file.size else 'about '}{spoken(file.size or file.about)}"
    say(f"  {size:>9}  {'here' if here else 'to fetch':8}  {file.file}")
    if not here and not dry_run:
        say(f"  here, {web.fetch(file)}")
    return here or not dry_run


def _of_model(model: str, plugins: Sequence[Path]) -> list[Item]:
    entry, repository = known_as(model, plugins), repository_of(model, plugins)
    if repository is None or Path(model).is_dir():
        resolve_model(model, plugins)
        return []
    known = {} if entry is None else {"licence": entry.licence, "restrictions": entry.restrictions, "size": entry.size}
    return [Item(title=f"model {model}", repository=repository, model=model, **known)]


def _of_reward(name: str, scorer: Any) -> list[Item | WebItem]:
    """Return the repositories that a scorer reads files of, and its files of the web."""
    files = getattr(scorer, "files", ())
    groups: dict[Repository, list[HubFile]] = {}
    for file in files:
        if isinstance(file, HubFile):
            groups.setdefault(weights.repository(file), []).append(file)
    items: list[Item | WebItem] = [
        Item(
            title=f"reward {name}",
            repository=repository,
            files=tuple(group),
            licence=", ".join(dict.fromkeys(file.licence for file in group if file.licence)),
            restrictions="; ".join(dict.fromkeys(file.restrictions for file in group if file.restrictions)),
            size=sum(file.size or file.about for file in group),
        )
        for repository, group in groups.items()
    ]
    return items + [WebItem(title=f"reward {name}", file=file) for file in files if isinstance(file, WebFile)]


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
    chosen = (_listed(item, file, told) for file in item.files)
    return sorted({path for path in chosen if path})


def _listed(item: Item, file: HubFile, told: Listing) -> str:
    """Return which path of a scorer's file its repository has; empty for one that it may do without.

    Raises:
        InputError: if it has none, or one of another size than the scorer knows.
    """
    path = next((path for path in file.paths if path in told.sizes), "")
    if not path and not file.optional:
        raise InputError(
            f"{item.repository} has no {' or '.join(file.paths)}: {item.title} is of another revision of it"
        )
    if path == file.file and file.size not in (0, told.sizes[path]):
        raise InputError(
            f"{path} of {item.repository} has {told.sizes[path]:,} bytes, and {item.title} knows one of "
            f"{file.size:,}: it is of another revision"
        )
    return path


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


def _chosen(folder: Path, file: HubFile) -> bool:
    """Return whether one of the paths of a scorer's file is in a folder."""
    return any(_is_here(folder, path, file.size if path == file.file else 0) for path in file.paths)


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
        names = ", ".join(file.file for file in item.files)
        raise InputError(f"{folder} lacks some of {names}: remove it, and run the command again")


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
