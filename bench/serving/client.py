"""A question to a server over HTTP, without trust: so long and no longer, so many bytes and no more."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from ssl import SSLError
from threading import Event, Timer
from urllib.parse import urlsplit

from bench.contract import UnavailableError
from bench.serving import protocol

CONNECTING = 10.0
"""Seconds that a connection may take."""
PIECE = 1 << 16


class NotThereError(Exception):
    """Nobody answers, or whoever did is gone: asked again, it may be back."""


class LateError(UnavailableError):
    """Somebody is there, and does not answer in time."""


@dataclass(slots=True)
class Line:
    """The connections of questions that are asked at once, so that all can be hung up."""

    ended: Event = field(default_factory=Event)
    open: set[socket.socket] = field(default_factory=set)

    def end(self) -> None:
        """Hang up, and let nobody ask again."""
        self.ended.set()
        for one in list(self.open):
            _hang_up(one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is. Its answers come from there and from nowhere else: no proxy is asked, no redirection followed.

    Args:
        url: as a user writes it.

    Raises:
        ValueError: for what is no address of a server.
    """

    url: str

    def __post_init__(self) -> None:
        """Check the address."""
        if set(self.url) & set("@?#"):  # looked for first: what may be a secret is not repeated
            raise ValueError(
                "an address has no user, query or fragment, for records keep it: give a secret as $ARBOR_TOKEN or in a "
                "token_file, an OpenAI server's as $OPENAI_API_KEY"
            )
        if not _is_address(self.url):
            raise ValueError(f"{self.url!r} is no address of a server, as http://127.0.0.1:8000 is")

    @property
    def is_open(self) -> bool:
        """Return whether what is said to it can be read on the way: it is another machine's, without TLS."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not protocol.is_loopback(parts.hostname or "")

    def connection(self, timeout: float) -> HTTPConnection:
        """Return a connection that is not open yet."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)

    def path(self, path: str) -> str:
        """Return the path of a resource on the server."""
        return urlsplit(self.url).path.rstrip("/") + path


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is no number, a name that no host has
        return False
    return known and url.isprintable() and " " not in url


def asked(
    address: Address,
    path: str,
    body: bytes | None,
    *,
    token: str,
    timeout: float,
    longest: int,
    line: Line | None = None,
) -> tuple[int, bytes]:
    """Return status and body of a server's answer.

    Args:
        address: of the server.
        path: on it.
        body: that is sent; None asks without.
        token: that is shown; may be empty.
        timeout: seconds for everything, from when the connection stands.
        longest: most bytes of an answer.
        line: that this is one of; None for a question by itself.

    Raises:
        NotThereError: the server is not there, went away, or the line was ended.
        LateError: it is there, and answers too late.
        UnavailableError: it answers too much, or no HTTP.
    """
    connection, line = address.connection(min(timeout, CONNECTING)), line or Line()
    late = Event()
    try:
        try:
            connection.connect()
        except OSError as error:
            raise NotThereError(f"no connection: {_why(error)}") from error
        sock = connection.sock
        sock.settimeout(None)  # a time-out of each read would let one byte a second go on for ever
        line.open.add(sock)
        timer = Timer(timeout, _hang_up, [sock, late])
        timer.daemon = True
        timer.start()
        try:
            if line.ended.is_set():
                raise NotThereError("it is not asked any more")
            answer = _exchanged(connection, address.path(path), body, token, longest)
            if late.is_set() or line.ended.is_set():  # without a length, what was hung up looks like an end
                raise ConnectionError("it was hung up")
            return answer
        except (OSError, HTTPException, ValueError) as error:
            if late.is_set():
                raise LateError(f"no answer in {timeout:g} s") from error
            if _is_break(error):
                raise NotThereError(f"the connection broke: {_why(error)}") from error
            raise UnavailableError(f"what answers speaks no HTTP: {_why(error)}") from error
        finally:
            timer.cancel()
            line.open.discard(sock)
    finally:
        connection.close()


def _is_break(error: Exception) -> bool:
    """Return whether a connection ended before the answer did; http.client's RemoteDisconnected is an OSError."""
    cut = isinstance(error, BadStatusLine) and "HTTP/1.".startswith(str(error).strip()[:7])
    return cut or isinstance(error, OSError | IncompleteRead)


def _hang_up(sock: socket.socket, late: Event | None = None) -> None:
    if late is not None:
        late.set()
    with suppress(OSError):  # it may be closed
        sock.shutdown(socket.SHUT_RDWR)


def _exchanged(
    connection: HTTPConnection, path: str, body: bytes | None, token: str, longest: int
) -> tuple[int, bytes]:
    headers = {"Connection": "close", "Accept": "application/json"}
    headers |= {"Content-Type": "application/json"} if body is not None else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    refused: OSError | None = None
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
    except OSError as error:  # who refuses a body may answer before it has it
        refused = error
    try:
        with connection.getresponse() as response:
            return response.status, _read(response, longest)
    except (OSError, HTTPException):
        if refused is not None:
            raise refused from None
        raise


def _read(response: HTTPResponse, longest: int) -> bytes:
    announced = response.length
    if announced is not None and announced > longest:
        raise UnavailableError(f"the answer is announced as {announced:,} bytes: {longest:,} at most are taken")
    pieces, size = [], 0
    while piece := response.read1(PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > longest:
            raise UnavailableError(f"the answer has more than {longest:,} bytes")
    if announced is not None and size < announced:
        raise ConnectionError(f"{announced:,} bytes were announced and {size:,} came")
    if announced is None and not size:  # an end among the headers looks like an answer of nothing
        raise ConnectionError("nothing was announced and nothing came")
    return b"".join(pieces)


def _why(error: Exception) -> str:
    if isinstance(error, SSLError):
        return f"{error.reason or 'no TLS'}: https:// is of servers that speak TLS"
    return protocol.line(str(getattr(error, "strerror", None) or error), 200) or type(error).__name__
