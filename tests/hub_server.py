"""A hub of models and datasets on this machine: enough of the Hugging Face hub's API for huggingface_hub's own client.

`HubServer.hosting()` serves folders; `environment()` is what a process needs to talk to it, `pointed()` does the same
for this process. Repositories may be gated, files may be cut in the middle or announced with a wrong size, and
every request is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hosted import hosted

LARGE = (".safetensors", ".bin", ".parquet", ".pt", ".ckpt")
"""Files that a hub keeps outside git, as "LFS": known by their SHA-256."""
TOKEN = "hf_granted"
"""Opens gated repositories."""
STRANGER = "hf_stranger"
"""A valid token of someone whom no gated repository has let in."""


@dataclass(kw_only=True)
class Repository:
    branches: dict[str, Path]
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    """As in the head of README.md: `{"license": "other", "license_name": ..., "license_link": ...}`."""

    def folder(self, revision: str) -> Path | None:
        """Return the folder of a branch or a commit."""
        if revision in self.branches:
            return self.branches[revision]
        return next((folder for folder in self.branches.values() if commit_of(folder) == revision), None)


@dataclass(kw_only=True)
class HubServer:
    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    """By kind ("models" or "datasets") and id."""
    cuts: dict[str, int] = field(default_factory=dict)
    """Path in a repository -> how many more of its downloads end in the middle."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Path in a repository -> the size, in bytes, that the listing claims, where it is wrong."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each, in order."""
    downloads: list[str] = field(default_factory=list)
    """Path in its repository of each file whose contents were asked for, in order; a resumed one twice."""

    def add(
        self,
        name: str,
        folder: Path,
        *,
        kind: str = "models",
        gated: bool = False,
        branches: Mapping[str, Path] | None = None,
        **card: Any,
    ) -> None:
        """Serve a folder as the repository `name` (owner/name); `branches` are others beside main."""
        both = {"main": folder, **(branches or {})}
        self.repositories[kind, name] = Repository(branches=both, gated=gated, card=card)

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Return the variables with which another process talks to this hub, and keeps what it gets in `cache`."""
        home = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub")}
        return {**home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}

    @contextmanager
    def pointed(self, cache: Path, *, offline: bool = False, token: str | None = None) -> Iterator[None]:
        """Let huggingface_hub in this process talk to this hub, and keep what it gets in `cache`."""
        from huggingface_hub import constants

        bars = import_module("huggingface_hub.utils.tqdm")  # reads its constant once, as it is imported
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "HF_STORED_TOKENS_PATH": str(cache / "stored_tokens"),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in values.items():
                patch.setattr(constants, name, value)
            patch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)
            for name, value in self.environment(cache, HF_HUB_OFFLINE=str(int(offline))).items():
                patch.setenv(name, value)
            patch.delenv("HF_TOKEN", raising=False)
            if token is not None:
                patch.setenv("HF_TOKEN", token)
            yield

    @classmethod
    @contextmanager
    def hosting(cls) -> Iterator[HubServer]:
        """Run a hub in a thread, on a free port of this machine."""
        hub = cls()
        with hosted(type("Handler", (Handler,), {"hub": hub})) as hub.url:
            yield hub


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def commit_of(folder: Path) -> str:
    sha = hashlib.sha1()
    for name in files_of(folder):
        sha.update(f"{name}:{etag_of(folder / name)};".encode())
    return sha.hexdigest()


def etag_of(path: Path) -> str:
    content = path.read_bytes()
    if path.name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: requests are kept."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        try:
            words = path.strip("/").split("/")
            if words[0] == "api":
                self.send_json(self.told(words[1], "/".join(words[2:4]), words[4:]))
            else:
                kind = words.pop(0) if words[0] == "datasets" else "models"
                self.send_file(kind, "/".join(words[:2]), words[2:])
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self.send_json({"error": str(error)}, error.status, headers)

    def repository(self, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get((kind, name))
        if found is None:
            raise Refused(404 if self.token() else 401, "RepoNotFound", "Repository not found")
        return found

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip()

    def folder(self, repository: Repository, revision: str) -> Path:
        folder = repository.folder(revision)
        if folder is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return folder

    def told(self, kind: str, name: str, words: list[str]) -> Any:
        """Return what the API says of a repository: its refs, its files, or itself."""
        repository, what = self.repository(kind, name), (words or ["revision"])[0]
        if what == "refs":
            branches = {branch: commit_of(folder) for branch, folder in repository.branches.items()}
            refs = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in branches.items()]
            return {"branches": refs, "tags": [], "converts": []}
        folder = self.folder(repository, words[1] if len(words) > 1 else "main")
        names = files_of(folder)
        if what == "tree":
            within = "/".join(words[2:])
            return [self.entry(folder, name) for name in names if name.startswith(within)]
        if what == "paths-info":
            wanted = json.loads(self.body)["paths"]
            return [self.entry(folder, name) for name in names if name in wanted]
        files = [{"rfilename": name, "size": (folder / name).stat().st_size} for name in names]
        about = {"private": False, "disabled": False, "gated": "auto" if repository.gated else False}
        commit = {"sha": commit_of(folder), "siblings": files, "cardData": repository.card, "tags": []}
        return {"_id": name, "id": name, "downloads": 0, "likes": 0, **about, **commit}

    def entry(self, folder: Path, name: str) -> dict[str, Any]:
        size, etag = self.hub.sizes.get(name, (folder / name).stat().st_size), etag_of(folder / name)
        found = {"type": "file", "path": name, "size": size, "oid": etag[:40]}
        return found | ({"lfs": {"oid": etag, "size": size, "pointerSize": 134}} if name.endswith(LARGE) else {})

    def send_file(self, kind: str, name: str, words: list[str]) -> None:
        repository = self.repository(kind, name)
        if words[:1] != ["resolve"] or len(words) < 3:
            raise Refused(404, "EntryNotFound", "Entry not found")
        if repository.gated and self.token() != TOKEN:
            raise Refused(403 if self.token() else 401, "GatedRepo", f"Access to model {name} is restricted")
        folder, file = self.folder(repository, words[1]), "/".join(words[2:])
        if file not in files_of(folder):
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = (folder / file).read_bytes()
        start, _, stop = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(start or 0) : int(stop) + 1 if stop else None]
        etag, size = etag_of(folder / file), self.hub.sizes.get(file, len(content))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", commit_of(folder))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(size))
        self.send_header("Accept-Ranges", "bytes")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{int(start or 0) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.downloads.append(file)
        if self.hub.cuts.get(file, 0) > 0:
            self.hub.cuts[file] -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)

    def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
