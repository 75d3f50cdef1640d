"""Scorers by what is written, as in `pickscore(scale=logit)`: looked at before a run, and what records call them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from bench.contract import UnavailableError
from bench.parse import coerce, field_types, key_value, name_and_items, settings_of, yaml_value
from bench.record import name_and_weight
from bench.registry import InputError, Registry
from bench.scorers.weights import check_files

EXTRAS = {"av": "video"}
"""Module -> the extra of this distribution that brings it, where that is not `rewards`."""


def looked_at(text: str, registry: Registry) -> Any:
    """Return what tells of a scorer without loading it: its class or, of a class with options, its instance.

    Raises:
        InputError: for an unknown name or option, a value that is none, or a server that does not answer.
    """
    name, items = name_and_items(text, "a scorer")
    kind: Any = registry.get(name)
    if not hasattr(kind, "__dataclass_fields__"):
        if items:
            raise InputError(f"{text!r}: {name} takes no options")
        return kind
    hints, known = field_types(kind), [f.name for f in dataclasses.fields(kind)]
    given = settings_of(text, (_option(item, known[0]) for item in items))
    for key, value in given.items():
        if key not in hints:
            raise InputError(f"{name} has no option {key!r}; it has {', '.join(known)}")
        if value is None:
            raise InputError(f"{text!r}: {key} has no value; leave it out, or give it one")
    typed = {key: coerce(value, hints[key], f"{name}.{key}") for key, value in given.items()}
    try:
        scorer = kind(**typed)
        scorer.info  # noqa: B018  # a server is asked for it
    except TypeError as error:
        raise InputError(f"{text!r} lacks an option: {_lacking(kind, typed)}") from error
    except (ValueError, UnavailableError) as error:  # the text may hold a secret
        raise InputError(f"{name}: {error}") from error
    return scorer


def _option(item: str, first: str) -> tuple[str, Any]:
    """Return key and value of an option; a value alone, such as an address, is the first one's."""
    key, sign, _ = item.partition("=")
    return key_value(item) if sign and key.strip().isidentifier() else (first, yaml_value(item, first))


def _lacking(kind: Any, given: Mapping[str, Any]) -> str:
    missing = [f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return ", ".join(f.name for f in missing if f.name not in given)


def label(text: str, scorer: Any) -> str:
    """Return what records call a scorer: its own label or its name, with the options that move its scores."""
    own = getattr(scorer, "label", "")
    name = text.partition("(")[0].strip()
    if own or isinstance(scorer, type):
        return own or name
    changed = [f"{f.name}={_spoken(getattr(scorer, f.name))}" for f in dataclasses.fields(scorer) if _moves(f, scorer)]
    return f"{name}({','.join(changed)})" if changed else name


def _moves(option: dataclasses.Field[Any], scorer: Any) -> bool:
    return not option.metadata.get("means") and getattr(scorer, option.name) != option.default


def _spoken(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scorers:
    """The scorers that a run names, looked at."""

    found: Mapping[str, Any]
    """Label -> what tells of it."""
    written: Mapping[str, str]
    """Label -> how it was written, where that is not the same."""

    def __getitem__(self, label: str) -> Any:
        return self.found[label]

    def revisions(self) -> tuple[str, ...]:
        """Return each scorer's label@revision."""
        return tuple(f"{name}@{scorer.info.revision}" for name, scorer in self.found.items())


def named(texts: Iterable[str], registry: Registry) -> tuple[Scorers, list[str]]:
    """Return the scorers of texts such as `hpsv2.1:0.7`, and each text with the scorer's label in it.

    One that is written with its address or folder is meant wherever its bare label is written, too: a model's default
    judge `pickscore` runs where `remote(http://...)` says that it does.

    Raises:
        InputError: as `looked_at`, or if two of one label have different addresses or folders.
    """
    found: dict[str, Any] = {}
    written: dict[str, str] = {}
    labelled = []
    for item in texts:
        text, weight = name_and_weight(item)
        scorer = looked_at(text, registry)
        name = label(text, scorer)
        other = written.get(name, name)
        if name not in (other, text) and other != text:
            raise InputError(f"{other!r} and {text!r} are both {name!r} in records; name one of them")
        if name not in found or other == name:
            found[name], written[name] = scorer, text
        labelled.append(name if weight is None else f"{name}:{weight}")
    differently = {name: text for name, text in written.items() if text != name}
    return Scorers(found=found, written=differently), labelled


def check_here(scorers: Mapping[str, Any]) -> None:
    """Raise InputError unless what the scorers import and read is on this machine."""
    for name, scorer in scorers.items():
        lacking = [module for module in getattr(scorer, "packages", ()) if find_spec(module) is None]
        if lacking:
            extra = EXTRAS.get(lacking[0], "rewards")
            raise InputError(f"reward {name!r} needs {lacking[0]}: pip install 'arbor-bench[{extra}]' brings it")
        check_files(name, getattr(scorer, "files", ()), getattr(scorer, "weights", ""))
        check_itself(scorer)


def check_itself(scorer: Any) -> None:
    """Raise InputError unless what a scorer itself looks for is on this machine."""
    try:
        getattr(scorer, "check", lambda: None)()
    except FileNotFoundError as error:
        raise InputError(str(error)) from error


def memory(scorers: Mapping[str, Any]) -> float:
    """Return the bytes of the scorers' weights, as far as they tell; some share theirs."""
    held = {getattr(one, "shares", id(one)): getattr(one, "memory", 0) for one in scorers.values()}
    return float(sum(held.values()))


def check_same(name: str, text: str, scorer: Any, revisions: Sequence[str]) -> None:
    """Raise UnavailableError if a server serves another scorer than when the run was begun.

    Args:
        name: of the scorer in records.
        text: that names it.
        scorer: that was looked at.
        revisions: of the run's scorers, as `Scorers.revisions` has them; empty in the first version's records.
    """
    now = f"{label(text, scorer)}@{scorer.info.revision}"
    if hasattr(scorer, "label") and revisions and now not in revisions:
        then = next((said for said in revisions if said.startswith(f"{name}@")), name)
        raise UnavailableError(f"{text} serves {now} now, and this run began with {then}: start that again")


def spoken(kind: Any) -> str:
    """Return a class's unit, range and options, as far as they are known without any."""
    options = [f.name for f in dataclasses.fields(kind)] if hasattr(kind, "__dataclass_fields__") else []
    try:
        info = kind().info if options else kind.info
    except (TypeError, ValueError):  # an option is wanted that says what it is
        info = None
    unit = f" [{info.unit}, {info.low:g} to {info.high:g}]" if info else ""
    return f"{unit} ({', '.join(options)})" if options else unit


def ready(scorer: Any) -> Any:
    """Return a scorer that was looked at, with what it needs in memory.

    Raises:
        Exception: whatever loading it raises.
    """
    made = scorer() if isinstance(scorer, type) else scorer
    if hasattr(made, "load"):
        made.load()
    return made


def loaded(name: str, scorer: Any) -> Any:
    """Return a scorer that was looked at, with what it needs in memory.

    Raises:
        InputError: if its files are not what it reads, or whatever else loading it raises.
    """
    try:
        return ready(scorer)
    except Exception as error:
        kind = "" if isinstance(error, RuntimeError | FileNotFoundError) else f"{type(error).__name__}: "  # in words
        raise InputError(f"{name} cannot be loaded: {kind}{' '.join(str(error).split())}") from error
