"""Text -> typed values: a dataclass's own annotations say what a key takes; nothing passes silently."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from bench.record import name_and_weight
from bench.registry import InputError, nearest


def replaced(value: Any, changes: Mapping[str, Any], where: str) -> Any:
    """Return a copy of a frozen dataclass with checked changes.

    Raises:
        InputError: for an unknown key, a value of another type, or a value the dataclass itself refuses.
    """
    hints = field_types(type(value))
    typed: dict[str, Any] = {}
    for key, raw in changes.items():
        if key not in hints:
            raise InputError(f"{where} has no setting {key!r}{nearest(key, hints)}")
        typed[key] = coerce(raw, hints[key], f"{where}.{key}")
    try:
        return dataclasses.replace(value, **typed)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's settings by name."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def coerce(raw: Any, kind: Any, where: str) -> Any:
    """Return `raw` (as YAML reads it) as a value of the annotated type.

    Raises:
        InputError: if it is none.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(raw, get_args(kind), where)
    if origin is Literal:
        if raw in get_args(kind):
            return raw
        raise InputError(f"{where}={raw!r} is not a choice{nearest(str(raw), [str(a) for a in get_args(kind)])}")
    if origin is tuple:
        if not isinstance(raw, (list, tuple)):
            raise InputError(f"{where}={raw!r}: a list is wanted, such as [0,1,2]")
        inner = get_args(kind)
        if inner[-1] is not Ellipsis and len(inner) != len(raw):
            raise InputError(f"{where}={list(raw)}: {len(inner)} values are wanted")
        return tuple(coerce(item, inner[0], where) for item in raw)
    return _scalar(raw, kind, where)


def _one_of(raw: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if raw is None and type(None) in kinds:
        return None
    said = []
    for kind in kinds:
        try:
            if kind is not type(None):
                return coerce(raw, kind, where)
        except InputError as error:
            said.append(str(error))
    # A word most likely misspells a choice; anything else is best explained by the last alternative.
    raise InputError(said[0] if isinstance(raw, str) else said[-1])


def _scalar(raw: Any, kind: Any, where: str) -> Any:
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if kind is float and not isinstance(raw, bool):
        try:
            number = float(raw)  # YAML reads 1e-3 as text
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isnan(number):
            return number
    if kind is str and (raw is None or isinstance(raw, str)):
        return raw or ""  # `key=` reads as None
    raise InputError(f"{where}={raw!r}: {_spoken(kind)} is wanted")


def _spoken(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, str(kind))


def yaml_value(text: str, where: str) -> Any:
    """Return what YAML reads in a value of the command line."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise InputError(f"{where}={text!r} is not a value YAML reads") from error


def key_value(text: str) -> tuple[str, Any]:
    """Return key and value of `key=value`."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"{text!r}: a setting is written key=value")
    return key.strip(), yaml_value(value.strip(), key.strip())


def split_top(text: str) -> list[str]:
    """Return the comma-separated parts of a text, commas inside brackets left alone.

    Raises:
        InputError: for unbalanced brackets.
    """
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth < 0:
            raise InputError(f"{text!r}: a bracket closes that was never opened")
        if char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    if depth:
        raise InputError(f"{text!r}: a bracket is never closed")
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSpec:
    """An arm as written: a name, and its settings in brackets."""

    label: str
    algo: str
    changes: Mapping[str, Any]


def parse_arms(text: str) -> list[ArmSpec]:
    """Return the arms of `dance(tf=0.6),branch(splits=sparse)`.

    Raises:
        InputError: for malformed text, or an arm named twice.
    """
    arms = []
    for part in split_top(text):
        name, items = name_and_items(part, "an arm")
        changes = settings_of(part, map(key_value, items))
        arms.append(ArmSpec(label=part.replace(" ", ""), algo=name, changes=changes))
    labels = [arm.label for arm in arms]
    if not labels:
        raise InputError("no arm is named; --algos dance,mix,branch names three")
    if len(set(labels)) < len(labels):
        raise InputError(f"an arm is named twice: {', '.join(labels)}")
    return arms


def name_and_items(text: str, what: str) -> tuple[str, list[str]]:
    """Return the name of `name` or `name(a,b)`, and what its brackets hold.

    Raises:
        InputError: if it is neither, with `what` it should be.
    """
    name, bracket, rest = text.partition("(")
    if bracket and not rest.endswith(")"):
        raise InputError(f"{text!r}: {what} is written name or name(key=value,...)")
    return name.strip(), split_top(rest[:-1]) if bracket else []


def settings_of(text: str, items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the settings of the brackets in a text.

    Raises:
        InputError: for one that is given twice.
    """
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise InputError(f"{text!r} sets {key!r} twice")
        found[key] = value
    return found


def weights(rewards: Sequence[str]) -> dict[str, float]:
    """Return the normalised weight of each reward named as `name` or `name:weight`.

    Raises:
        InputError: for a weight that is not a positive number, or a reward named twice.
    """
    found: dict[str, float] = {}
    for item in rewards:
        name, weight = name_and_weight(item)
        try:
            value = 1.0 if weight is None else float(weight)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise InputError(f"reward {item!r}: a weight is a positive number, as in {name}:0.5")
        if name in found:
            raise InputError(f"reward {name!r} is named twice")
        found[name] = value
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}
