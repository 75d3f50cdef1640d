"""`bench new-algorithm NAME`: one commented file that runs at once."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

from bench.registry import InputError, load

TEMPLATE = Path(__file__).with_name("template.py")


def new_algorithm(name: str, folder: Path) -> Path:
    """Write an algorithm of that name into a folder, and return its file.

    Raises:
        InputError: for a name that is no name or is taken, or a file that exists or cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{name!r} is no name for an algorithm: small letters, digits and hyphens, as in my-grpo")
    module, text = name.replace("-", "_"), TEMPLATE.read_text(encoding="utf-8")
    if (folder / f"{module}.py").exists():
        raise InputError(f"{folder / f'{module}.py'} exists; delete it or choose another name")
    if iskeyword(module) or find_spec(module) is not None or class_name(name) in names_in(text):
        raise InputError(
            f"{name!r}: a file {module}.py would hide a module or a class of that name; choose another name"
        )
    known = load("algorithms")
    if name in known.values:
        raise InputError(f"{name!r} is taken, by {known.origins[name]}; choose another name")
    file = folder / f"{module}.py"
    for placeholder, word in (("TEMPLATE", name), ("Template", class_name(name)), ("template", name)):
        text = text.replace(placeholder, word)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from error
    return file


def names_in(text: str) -> set[str]:
    """Return the names that a module imports or defines."""
    nodes = list(ast.walk(ast.parse(text)))
    imported = {
        alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return imported | {node.id for node in nodes if isinstance(node, ast.Name)}


def class_name(name: str) -> str:
    """Return the name of an algorithm's class: my-grpo is MyGrpo."""
    return "".join(part.capitalize() for part in name.split("-"))
