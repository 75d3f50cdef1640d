"""`bench new-algorithm NAME`: one commented file that runs at once."""

from __future__ import annotations

import re
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
    known = load("algorithms")
    if name in known.values:
        raise InputError(f"{name!r} is taken, by {known.origins[name]}; choose another name")
    file = folder / f"{name.replace('-', '_')}.py"
    text = TEMPLATE.read_text(encoding="utf-8")
    for placeholder, word in (("TEMPLATE", name), ("Template", class_name(name)), ("template", name)):
        text = text.replace(placeholder, word)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise InputError(f"{file} exists; delete it or choose another name") from error
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from error
    return file


def class_name(name: str) -> str:
    """Return the name of an algorithm's class: my-grpo is MyGrpo."""
    return "".join(part.capitalize() for part in name.split("-"))
