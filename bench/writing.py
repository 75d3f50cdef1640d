"""What the system refuses to write, told with the file's name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WriteError(OSError):
    """A file that cannot be written, and why."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}; once it can, the same command goes on"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write inside into WriteError: a full disk says neither which file nor, through some
    libraries, that it is full.
    """
    try:
        yield
    except Exception as error:
        code = _system_error(error)
        if code is None:
            raise
        raise WriteError(code, os.strerror(code), str(path)) from error


def _system_error(error: BaseException | None) -> int | None:
    """Return the system's number of an error, or of what it came from, or that it tells of in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if told := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error)):  # safetensors; shutil, of many files
            return int(told[1] or told[2])
        error = error.__cause__ or error.__context__
    return None
