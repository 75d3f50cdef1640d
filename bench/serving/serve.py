"""`bench serve SCORER`: everything checked, then loaded, and only then listened for."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.registry import InputError, load
from bench.scorers import lookup
from bench.serving import protocol

if TYPE_CHECKING:
    from bench.serving.server import Server

ENDING = 10.0
"""Seconds that what is being scored may take once the server is told to end."""


def serve(args: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Serve a scorer until a signal ends it; return 0, or 130 after Ctrl-C.

    Args:
        args: of `bench.arguments.serve_parser`.
        say: prints a line.

    Raises:
        InputError: for a scorer, an address or a token that is none, and for what is not on this machine.
    """
    token = checked(args)
    scorer = lookup.looked_at(args.scorer, load("rewards", args.plugin))
    name = lookup.label(args.scorer, scorer)
    if not protocol.is_name(name):
        raise InputError(f"{name!r} is no name that a server can tell: letters, digits and ._+- are, and options")
    lookup.check_here({args.scorer: scorer})
    device = found(args.device)
    reward = lookup.loaded(args.scorer, scorer)
    server = listening(args, name, reward, device, token)
    with ending() as ended:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        say(f"{name} [{scorer.info.unit}] is served at {server.url}: --rewards 'remote({server.url})'")
        number = ended()
        server.scoring.end(ENDING)
        server.shutdown()
        server.server_close()
    return 130 if number == signal.SIGINT else 0


def checked(args: argparse.Namespace) -> str:
    """Return the token, after checking what is asked for.

    Raises:
        InputError: for an option that cannot be.
    """
    if not 0 <= args.port < 2**16:
        raise InputError(f"--port {args.port}: a whole number from 0 to 65535 is wanted")
    if args.batch < 1:
        raise InputError(f"--batch {args.batch}: at least one image is scored at a time")
    if args.max_bytes < 2**16:
        raise InputError(f"--max-bytes {args.max_bytes}: at least {2**16} are needed, for an image")
    try:
        token = protocol.token_of(args.token_file)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not token and not protocol.is_loopback(args.host):
        raise InputError(
            f"--host {args.host} is reached from other machines, and there is no token: give --token-file FILE, or set "
            f"{protocol.TOKEN}"
        )
    return token


def found(name: str) -> Any:
    """Return the device of that name.

    Raises:
        InputError: if there is none.
    """
    from bench.worker import found_device

    try:
        return found_device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error


def listening(args: argparse.Namespace, name: str, reward: Any, device: Any, token: str) -> Server:
    """Return a server that listens, of a scorer that is loaded."""
    from bench.serving.scoring import Scoring
    from bench.serving.server import Server

    about = protocol.About(name=name, info=reward.info, max_items=protocol.MAX_ITEMS, max_bytes=args.max_bytes)
    scoring = Scoring(name, reward, device=device, batch=args.batch, alone=args.alone)
    try:
        return Server(args.host, args.port, about=about, scoring=scoring, token=token)
    except OSError as error:
        scoring.end(0.0)
        why = error.strerror or str(error)
        raise InputError(f"{args.host}, port {args.port}, cannot be listened on ({why}): choose another") from error


@contextmanager
def ending() -> Iterator[Callable[[], int]]:
    """Yield what waits for SIGTERM or Ctrl-C and returns its number."""
    come, said = threading.Event(), list[int]()

    def end(number: int, _: Any) -> None:
        said.append(number)
        come.set()

    def wait() -> int:
        while not come.wait(0.2):  # a wait without an end is not left for a signal that came to another thread
            pass
        return said[0]

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
