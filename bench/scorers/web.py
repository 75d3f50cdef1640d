"""Small files outside the hub that scorers read: fetched whole to the program's cache, or not at all."""

from __future__ import annotations

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from bench.contract import WebFile
from bench.models.hub import MissingError, offline
from bench.scorers.weights import kept, spoken

SECONDS = 60.0
"""Longest silence of a server."""
MOST = 64_000_000
"""Bytes of a file whose size is not known; larger ones belong on the hub."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def is_here(file: WebFile) -> bool:
    """Return whether a file is on this machine, whole as far as its size is known."""
    path = kept() / file.file
    return path.is_file() and file.size in (0, path.stat().st_size)


def fetch(file: WebFile) -> Path:
    """Fetch a file, and return where it is kept; nothing is kept of one that is not what was wanted.

    Raises:
        MissingError: if it cannot be had, in one line with the reason and the remedy.
    """
    path = kept() / file.file
    try:
        _put(path, _read(file))
    except _UnfitError as error:
        reason = str(error)
    except HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        return path
    raise MissingError(f"{file.address} cannot be had: {reason}; run the command again, or copy the file to {path}")


def _put(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _UnfitError(Exception):
    """Why what a server would send is not wanted."""


def _read(file: WebFile) -> bytes:
    """Return the contents of a file."""
    if offline():
        raise _UnfitError("HF_HUB_OFFLINE is set, so nothing is fetched")
    _check_address(file.address)
    most = file.size or MOST
    with build_opener(_Redirects).open(file.address, timeout=SECONDS) as reply:
        content: bytes = reply.read(most + 1)
        said = reply.headers.get_content_type()
    if said == "text/html" or content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise _UnfitError("the server sent a page of HTML in its place")
    if len(content) > most:
        raise _UnfitError(f"the server sent more than the {spoken(most)} of the file")
    if file.size and len(content) != file.size:
        raise _UnfitError(f"the server sent {len(content):,} bytes of {file.size:,}")
    if file.sha256 and hashlib.sha256(content).hexdigest() != file.sha256:
        raise _UnfitError("the server sent another file of the same size")
    return content


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to addresses that would be asked in the first place."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise _UnfitError(f"{parts.scheme or 'no'} address: https is wanted")
