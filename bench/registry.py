"""Names -> plugins: modules in the tree, entry points of other distributions, and files named on the command line."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cached_property, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.contract import Info, RewardInfo
from bench.models.catalog import Family, ModelEntry

KINDS = {"algorithms": "ARMS", "rewards": "REWARDS", "models": "MODELS", "families": "FAMILIES"}
"""Kind (entry-point group bench.<kind>) -> the mapping a plugin module defines."""
SINGULAR = {"algorithms": "algorithm", "rewards": "reward", "models": "model", "families": "family"}
WANTED = {
    "algorithms": "algorithm; a dataclass's instance with an `info` is wanted",
    "rewards": "reward; a class with an `info` is wanted",
    "models": "model; a bench.models.catalog.ModelEntry is wanted",
    "families": "family; a bench.models.catalog.Family is wanted",
}
IN_TREE = {"algorithms": "algorithms", "rewards": "rewards"}


class InputError(ValueError):
    """Wrong input: one line that names the remedy; exit status 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The plugins of one kind."""

    kind: str
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    """Name -> where it comes from: a module of the tree, a distribution's entry point, or a file."""
    broken: Mapping[str, str]
    """Module or entry point that cannot be used -> why, in one line."""

    def get(self, name: str) -> Any:
        """Return the plugin of that name.

        Raises:
            InputError: for an unknown name, with the nearest known one.
        """
        if name in self.values:
            return self.values[name]
        broken = "".join(f"; {where} does not load: {why}" for where, why in self.broken.items())
        raise InputError(f"unknown {SINGULAR[self.kind]} {name!r}{nearest(name, self.values)}{broken}")


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a hint at the nearest known name, or the list of all."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"


def load(kind: str, files: Sequence[Path] = ()) -> Registry:
    """Return all plugins of a kind, in the tree and out of it.

    Modules of the tree and of other distributions that cannot be used are `broken`, and hide no others.

    Raises:
        InputError: if two plugins claim one name, or a file is none, does not load or holds no plugins.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    broken: dict[str, str] = {}
    for origin, plugins in (*_discovered(kind, files, broken), *_named(kind, files)):
        for name, value in plugins.items():
            if name in values:
                both = (origins[name], origin)
                raise InputError(f"two plugins are called {name!r}: {' and '.join(both)}; {_remedy(both)}")
            values[name], origins[name] = value, origin
    return Registry(kind=kind, values=values, origins=origins, broken=broken)


def _discovered(kind: str, files: Sequence[Path], broken: dict[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the plugins of the tree's modules, then those of other distributions; note what cannot be used.

    A module whose own file is named on the command line as well is left to that: it is no second plugin.
    """
    tree, named = _in_tree(kind), {file.resolve() for file in files}
    installed = _installed(f"bench.{kind}", tuple(sys.path))
    entries = {entry.value: entry for entry in installed if entry.value not in tree}
    for name, entry in [*dict.fromkeys(tree).items(), *entries.items()]:
        origin = _origin(entry) if entry else name
        try:
            with _contained():
                module = _module(name)
                plugins = _plugins(kind, module, required=entry is not None)
                left = Path(getattr(module, "__file__", None) or "").resolve() in named
        except InputError as error:
            broken[origin] = str(error)
        else:
            if not left:
                yield origin, plugins


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001
    """Return the entry points of a group, read once of each `sys.path`, for a run looks plugins up often.

    A distribution that is installed while the process runs is seen by the next one.
    """
    return tuple(entry_points(group=group))


def _module(name: str) -> ModuleType:
    if ":" in name:
        raise InputError(f"an entry point names a module: {name.partition(':')[0].strip()!r} alone")
    return importlib.import_module(name)


def _in_tree(kind: str) -> list[str]:
    """Return the modules of the tree that may hold plugins of a kind."""
    if kind in ("models", "families"):
        return ["bench.models.catalog"]  # adapters import torch; the catalog names them
    package = importlib.import_module(IN_TREE[kind])
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


def _origin(entry: EntryPoint) -> str:
    """Return all that is needed to rename or uninstall what an entry point brings."""
    owner = f" of distribution {entry.dist.name!r}" if entry.dist else ""
    return f"entry point {entry.name!r}{owner} (module {entry.value})"


def _remedy(origins: Sequence[str]) -> str:
    """Return what to do about plugins of one name."""
    installed = any(origin.startswith("entry point") for origin in origins)
    return "rename one, or uninstall its distribution" if installed else "rename one"


@contextmanager
def _contained(said: str = "") -> Iterator[None]:
    """Turn whatever anyone's code raises, an exit included, into an InputError of one line; an interrupt stays one."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except InputError as error:
        raise InputError(f"{said}{' '.join(str(error).split())}") from error
    except BaseException as error:
        raise InputError(f"{said}{_in_a_line(error)}") from error


def _in_a_line(error: BaseException) -> str:
    """Return an error's type, message and place, on one line."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames and frames[-1].filename != __file__ else ""
    return f"{' '.join(''.join(traceback.format_exception_only(error)).split())}{place}"


def _plugins(kind: str, module: ModuleType, *, required: bool = False) -> Mapping[str, Any]:
    """Return a module's plugins of a kind, after checking that they may be some.

    Raises:
        InputError: if they may not, or if plugins of this kind are required and there is no mapping of them.
    """
    mapping = KINDS[kind]
    if required and not hasattr(module, mapping):
        raise InputError(f"it has no {mapping}: a mapping of names to plugins")
    found = getattr(module, mapping, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{mapping} must be a mapping of names to plugins")
    for name, value in found.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name == "all":
            raise InputError(
                f"{mapping} has {name!r} for a name; letters, digits and hyphens are wanted, as in my-grpo"
            )
        if not _is_one(kind, value):
            raise InputError(f"{name!r} is no {WANTED[kind]}")
    return dict(found)


def _is_one(kind: str, value: Any) -> bool:
    """Return whether a value may be a plugin of a kind, as far as can be seen without using it."""
    info = getattr(value, "info", None)
    if kind == "algorithms":
        return isinstance(info, Info) and is_dataclass(value) and not isinstance(value, type)
    if kind == "rewards":
        told = isinstance(info, RewardInfo) or (is_dataclass(value) and isinstance(info, (property, cached_property)))
        return told and callable(value)
    return isinstance(value, ModelEntry if kind == "models" else Family)


def _named(kind: str, files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the plugins of files that were named on the command line: what is wrong with one is wrong input."""
    for file in {file.resolve(): file for file in files}.values():
        module = _from_file(file)
        with _contained(f"--plugin {file}: "):
            plugins = _plugins(kind, module)
        yield str(file), plugins


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise InputError(f"--plugin {file}: no such file")
    place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    name = f"bench_plugin_{file.stem}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"--plugin {file} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _contained(f"--plugin {file} does not load: "):
            spec.loader.exec_module(module)
        if not any(hasattr(module, mapping) for mapping in KINDS.values()):
            raise InputError(f"--plugin {file} has none of {', '.join(KINDS.values())}: a mapping of names to plugins")
    except BaseException:
        sys.modules.pop(name, None)  # so that it can be mended
        raise
    return module
