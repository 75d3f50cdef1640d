"""Files that describe models and hold their weights: read without running what is in them, refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile


def state_of(file: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return what a .safetensors or a file of torch holds, weights mostly, by its keys.

    Args:
        file: that has them.
        mmap: whether weights stay on disk until they are read, where the format allows it.

    Raises:
        Exception: whatever reading a file that is none raises; see `taken_for`.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap and is_zipfile(file))
    except UnpicklingError as error:  # whose remedy is to run whatever the file holds
        raise ValueError("it is no file of torch that holds weights and nothing else") from error
    return {str(key): value for key, value in state.items()}


REMEDY = "give the published file, or fetch it again"


@contextmanager
def taken_for(what: str, file: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Raise RuntimeError, which says that `file` is not `what`, why and what to do, for whatever goes wrong within."""
    try:
        yield
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RuntimeError(f"{file} is not {what}: {why}; {remedy}") from error
