"""Algorithms as values: their settings, what they build on, and how both are written down and read back."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any, cast

from bench.contract import Algorithm, Named
from bench.parse import field_types, replaced
from bench.registry import InputError, Registry


def host_fields(algorithm: Algorithm) -> dict[str, Any]:
    """Return the settings that are algorithms themselves: those that this one builds on."""
    return {key: getattr(algorithm, key) for key, kind in field_types(type(algorithm)).items() if kind is Algorithm}


def hosts(algorithm: Algorithm) -> list[Algorithm]:
    """Return the algorithms that an algorithm builds on, and what those build on."""
    direct = [host for host in host_fields(algorithm).values() if not isinstance(host, Named)]
    return [found for host in direct for found in (host, *hosts(host))]


def settings(algorithm: Algorithm) -> dict[str, Any]:
    """Return an algorithm's hyper-parameters as plain values; of one it builds on, its family's name too."""
    below = {
        key: host.name if isinstance(host, Named) else {"class": class_of(host)} | settings(host)
        for key, host in host_fields(algorithm).items()
    }
    own = {key: getattr(algorithm, key) for key in field_types(type(algorithm)) if key not in below}
    return json.loads(json.dumps(own)) | below


def with_hosts(algorithm: Algorithm, below: Mapping[str, Algorithm]) -> Algorithm:
    """Return an algorithm with others in the place of the names in its host fields."""
    return dataclasses.replace(cast(Any, algorithm), **below)


def restored(values: Mapping[str, Any], base: Algorithm, algorithms: Registry, where: str) -> Algorithm:
    """Return the algorithm whose `settings` these are."""
    own = dict(values)
    below = {key: own.pop(key) for key in host_fields(base)}
    hosts = {
        key: restored(inner, of_class(inner.pop("class"), algorithms), algorithms, where)
        for key, inner in ((key, dict(inner)) for key, inner in below.items())
    }
    return replaced(with_hosts(base, hosts), own, where)


def class_of(algorithm: Algorithm) -> str:
    """Return the full name of an algorithm's class: packages may have classes of one name."""
    return f"{type(algorithm).__module__}.{type(algorithm).__qualname__}"


def of_class(name: str, algorithms: Registry) -> Algorithm:
    """Return the first algorithm of a class: its family's defaults.

    Raises:
        InputError: if none is registered.
    """
    for value in algorithms.values.values():
        if class_of(value) == name:
            return value
    raise InputError(f"no algorithm of class {name} is installed; name its file with --plugin")


def family(algorithm: Algorithm) -> str:
    """Return the name that an algorithm's variants have in common: its class's, in lower case."""
    return type(algorithm).__name__.lower()


def is_of_family(algorithm: Algorithm, algorithms: Registry) -> bool:
    """Return whether settings under the family's name are meant for it: no arm of another class has that name."""
    named = algorithms.values.get(family(algorithm))
    return named is None or class_of(named) == class_of(algorithm)


def info_record(algorithm: Algorithm) -> dict[str, Any]:
    """Return what records keep of an algorithm's info, and of those it builds on."""
    info, below = algorithm.info, [(family(host), host.info) for host in hosts(algorithm)]
    return {
        "paper": "; on ".join([info.paper, *(host.paper for _, host in below)]),
        "reference": "; on ".join([info.reference, *(host.reference for _, host in below)]),
        "deviations": [*info.deviations, *(f"{name}: {line}" for name, host in below for line in host.deviations)],
        "owns": sorted(owns(algorithm)),
    }


def owns(algorithm: Algorithm) -> frozenset[str]:
    """Return the shared keys that an algorithm, or one it builds on, may set itself."""
    return algorithm.info.owns.union(*(host.info.owns for host in hosts(algorithm)))


def code(algorithm: Algorithm) -> list[str]:
    """Return the files that define an algorithm: another text is another algorithm."""
    files = [sys.modules[type(part).__module__].__file__ for part in (algorithm, *hosts(algorithm))]
    return [file for file in files if file]
