"""Names -> plugins: modules in the tree, entry points of other distributions, and files named on the command line."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

KINDS = {"algorithms": "ARMS", "rewards": "REWARDS", "models": "MODELS"}
"""Kind (entry-point group bench.<kind>) -> the mapping a plugin module defines."""
IN_TREE = {"algorithms": "algorithms", "rewards": "rewards", "models": "bench.models"}


class InputError(ValueError):
    """Wrong input: one line that names the remedy; exit status 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The plugins of one kind."""

    kind: str
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    broken: Mapping[str, str]
    """Module or file -> the last line of its traceback."""

    def get(self, name: str) -> Any:
        """Return the plugin of that name.

        Raises:
            InputError: for an unknown name, with the nearest known one.
        """
        if name in self.values:
            return self.values[name]
        broken = "".join(f"; {where} does not load: {why}" for where, why in self.broken.items())
        raise InputError(f"unknown {self.kind.removesuffix('s')} {name!r}{nearest(name, self.values)}{broken}")


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a hint at the nearest known name, or the list of all."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"


def load(kind: str, files: Sequence[Path] = ()) -> Registry:
    """Return all plugins of a kind, in the tree and out of it.

    Raises:
        InputError: if two plugins claim one name, or a plugin file does not exist.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    broken: dict[str, str] = {}
    for where, module in _modules(kind, files, broken):
        for name, value in _plugins(kind, where, module).items():
            if name in values:
                raise InputError(f"two plugins are called {name!r}: {origins[name]} and {where}; rename one")
            values[name], origins[name] = value, where
    return Registry(kind=kind, values=values, origins=origins, broken=broken)


def _plugins(kind: str, where: str, module: ModuleType) -> Mapping[str, Any]:
    """Return a module's plugins of a kind, after checking that they may be some."""
    found = getattr(module, KINDS[kind], {})
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: {KINDS[kind]} must be a mapping of names to plugins")
    for name, value in found.items():
        if kind == "algorithms" and not (_has_info(value) and is_dataclass(value) and not isinstance(value, type)):
            raise InputError(f"{where}: {name!r} is no algorithm; a dataclass's instance with an `info` is wanted")
        if kind == "rewards" and not (_has_info(value) and callable(value)):
            raise InputError(f"{where}: {name!r} is no reward; a class with an `info` is wanted")
    return found


def _has_info(value: Any) -> bool:
    return hasattr(value, "info")


def _modules(kind: str, files: Sequence[Path], broken: dict[str, str]) -> Iterator[tuple[str, ModuleType]]:
    package = importlib.import_module(IN_TREE[kind])
    in_tree = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    if kind == "models":
        in_tree = ["bench.models.catalog"]  # adapters import torch; the catalog names them
    out_of_tree = [e.value for e in entry_points(group=f"bench.{kind}") if e.value not in in_tree]
    for name in [*in_tree, *out_of_tree]:
        try:
            yield name, importlib.import_module(name)
        except Exception:  # noqa: BLE001  # anyone's code may fail to import; it is reported and does not hide the others
            broken[name] = traceback.format_exc().strip().splitlines()[-1]
    for file in dict.fromkeys(files):
        yield str(file), _from_file(file)


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
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"--plugin {file} does not load: {traceback.format_exc().strip().splitlines()[-1]}") from error
    if not any(hasattr(module, mapping) for mapping in KINDS.values()):
        del sys.modules[name]
        raise InputError(f"--plugin {file} has none of {', '.join(KINDS.values())}: a mapping of names to plugins")
    return module
