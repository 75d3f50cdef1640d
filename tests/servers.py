"""Servers of scorers: one in a process of its own, one in this process, and ones that answer as they are told."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.serving import protocol
from bench.serving.scoring import Scoring
from bench.serving.server import Limits, Server


@contextmanager
def process(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield the process of `bench serve words --port 0`, ready, and its address."""
    command = [sys.executable, "-m", "bench.run", "serve", *words, "--port", "0"]
    where = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    running = subprocess.Popen(command, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        said = running.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", said)
        assert found, (said, running.stderr and running.stderr.read())
        yield running, found.group()
    finally:
        running.kill()
        running.communicate()


@contextmanager
def serving(
    reward: Any,
    name: str = "soft",
    *,
    port: int = 0,
    token: str = "",
    max_items: int = 256,
    max_bytes: int = 1 << 20,
    limits: Limits | None = None,
    **how: Any,
) -> Iterator[Server]:
    """Yield a server in this process."""
    about = protocol.About(name=name, info=reward.info, max_items=max_items, max_bytes=max_bytes)
    scoring = Scoring(name, reward, **{"device": torch.device("cpu"), "batch": 32} | how)
    server = Server("127.0.0.1", port, about=about, scoring=scoring, token=token, limits=limits or Limits())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        scoring.end(1.0)
        server.shutdown()
        server.server_close()


def place(server: Server) -> tuple[str, int]:
    """Return host and port of a server."""
    host, port = server.server_address[:2]
    return str(host), port


Reply = Callable[[socket.socket, str, bytes], None]
"""Answers a request of this path and body on a socket."""


class Fake:
    """A server that answers as it is told; `asked` is the paths of its requests."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked = reply, list[str]()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            self.open.append(client)
            threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as file:
                path = file.readline().split()[1].decode()
                length = 0
                while (header := file.readline().strip()) != b"":
                    key, _, value = header.partition(b":")
                    length = int(value) if key.lower() == b"content-length" else length
                self.asked.append(path)
                self.reply(client, path, file.read(length))
        except (OSError, IndexError):
            pass  # a client that hung up

    def stop(self) -> None:
        """Refuse connections, and break those that are open."""
        self.listening.close()
        for client in self.open:
            client.close()


@contextmanager
def faking(reply: Reply) -> Iterator[Fake]:
    """Yield a server that answers as it is told."""
    fake = Fake(reply)
    try:
        yield fake
    finally:
        fake.stop()


def http(body: bytes, status: int = 200, length: int | None = None, headers: Sequence[str] = ()) -> bytes:
    """Return the bytes of an answer."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} OK", f"Content-Length: {size}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
