"""What a server of a scorer and its clients say to each other: JSON over HTTP, version 1, as in docs/remote.md.

Nothing here trusts the other side: every size is looked at before what it is the size of is read or made.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from jaxtyping import Float, Int

from bench.contract import RewardInfo
from bench.serving.sent import MalformedError, opened

VERSION = 1
MAX_ITEMS = 256
"""Images, or videos, of one request."""
MAX_BYTES = 256 * 2**20
"""Of one request, and of the pixels in it."""
TOKEN = "ARBOR_TOKEN"  # the variable of the environment that has it
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(\([^\n]*\))?")
WORDS = 50
"""Most failures that an answer tells, and below how many characters of each."""
WORD = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a server tells of itself."""

    name: str
    """Of the scorer, in records."""
    info: RewardInfo
    max_items: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Images, or videos, to score."""

    prompts: tuple[str, ...]
    pixels: tuple[Any, ...]
    """One an image: uint8, or float32 in [0, 1], [3, height, width], of a video [frame, 3, height, width]."""
    group: Int[np.ndarray, " item"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Scores of a request; NaN of what could not be scored."""

    scores: Float[np.ndarray, " item"]
    failures: tuple[str, ...]
    """Why some are NaN, each reason once."""
    name: str
    revision: str
    """Of the scorer that gave them."""


# --- both sides ------------------------------------------------------------------------------------------------------


def token_of(file: str = "") -> str:
    """Return the secret that clients show, from a file or else from $ARBOR_TOKEN; empty for none.

    Raises:
        ValueError: if the file cannot be read, or the secret is not one word of printable ASCII.
    """
    if file:
        where = file
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"token file {file} cannot be read ({type(error).__name__})") from error
    else:
        where, token = f"${TOKEN}", os.environ.get(TOKEN, "")
    if (file or token) and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise ValueError(f"{where} holds no token: one word of printable ASCII is wanted")
    return token


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, seen from itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def line(text: str, longest: int = WORD) -> str:
    """Return a text of the other side, or of a scorer, as one printable line."""
    plain = "".join(char if char.isprintable() else " " for char in text.encode("utf-8", "replace").decode())
    return " ".join(plain.split())[:longest]


def parsed(body: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that bytes are; NaN and infinities pass, for answers to be counted as failed.

    Raises:
        MalformedError: if they are none.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} is no JSON in UTF-8, and begins with {body[:60]!r}") from error
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is no JSON object, and begins with {body[:60]!r}")
    return value


def written(value: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON object."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


# --- what a server tells of itself -----------------------------------------------------------------------------------


def about(told: About) -> bytes:
    """Return the body that answers /info; a range without an end has null there."""
    limits = {"max_items": told.max_items, "max_bytes": told.max_bytes}
    return written({"protocol": VERSION, "name": told.name, "info": told.info.as_json(), **limits})


def read_about(body: bytes) -> About:
    """Return what a server tells of itself.

    Raises:
        MalformedError: if it is no server of scores, or one of another version.
    """
    value = parsed(body, "what it tells of itself")
    if type(value.get("protocol")) is not int:
        raise MalformedError("it names no protocol: it is no server of `bench serve`")
    if value["protocol"] != VERSION:
        raise MalformedError(f"it speaks protocol {value['protocol']} and this program {VERSION}: install one version")
    limits = [value.get(key) for key in ("max_items", "max_bytes")]
    if any(type(limit) is not int or limit < 1 for limit in limits):
        raise MalformedError("its max_items and max_bytes are to be whole numbers from 1 on")
    name, info = value.get("name"), value.get("info")
    if not isinstance(name, str) or not is_name(name):
        raise MalformedError(f"its name is none that records can have: {line(repr(name), 80)}")
    if not isinstance(info, dict):
        raise MalformedError("its `info` is to be an object")
    return About(name=name, info=_info(info), max_items=int(limits[0] or 0), max_bytes=int(limits[1] or 0))


def is_name(name: str) -> bool:
    """Return whether records can have a scorer of this name."""
    return bool(NAME.fullmatch(name)) and len(name) <= 200 and name.isprintable()


def _info(value: Mapping[str, Any]) -> RewardInfo:
    hints, found = get_type_hints(RewardInfo), {}
    for field in dataclasses.fields(RewardInfo):
        if field.name in value:
            found[field.name] = _told(value[field.name], hints[field.name], field.name)
        elif field.default is dataclasses.MISSING:
            raise MalformedError(f"its `info` lacks {field.name!r}")
    return RewardInfo(**found)


def _told(value: Any, kind: Any, key: str) -> Any:
    if kind is float:
        if value is None:
            return -math.inf if key == "low" else math.inf
        if type(value) in (int, float) and math.isfinite(_finite(value)):
            return float(value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is str:
        if isinstance(value, str):
            return line(value, 2000)
    elif isinstance(value, str) and value in get_args(kind):
        return value
    raise MalformedError(f"its info.{key} is {line(repr(value), 80)}, which is none")


# --- requests --------------------------------------------------------------------------------------------------------


def request(items: Sequence[bytes], prompts: Sequence[str], group: Sequence[int], media: str) -> bytes:
    """Return the body that asks for scores."""
    rest = written({"prompts": list(prompts), "group": list(group)})[:-1]
    return rest + f', "{media}s": ['.encode() + b", ".join(items) + b"]}"


def read_request(
    body: bytes,
    info: RewardInfo,
    max_items: int = MAX_ITEMS,
    max_bytes: int = MAX_BYTES,
    hold: Callable[[int], object] = lambda _: None,
) -> Request:
    """Return what a client asks.

    Args:
        body: at most as long as the server reads.
        info: of the scorer: whether it takes images or videos, and whether it compares those of a group.
        max_items: of the request.
        max_bytes: of the pixels in it, which may be far more than of their files.
        hold: is told those bytes before they are made, and may refuse by raising.

    Raises:
        MalformedError: if it asks nothing that can be answered.
    """
    value = parsed(body, "the body")
    key = f"{info.media}s"
    items, prompts = value.get(key), value.get("prompts")
    if not isinstance(items, list) or not items:
        raise MalformedError(f"the body has no list {key!r}: this scorer takes {key}")
    if len(items) > max_items:
        raise MalformedError(f"{len(items)} {key} are more than max_items, {max_items}")
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise MalformedError("`prompts` is to be a list of texts")
    if len(prompts) != len(items):
        raise MalformedError(f"{len(items)} {key} and {len(prompts)} prompts: one each is wanted")
    if any(0xD800 <= ord(char) < 0xE000 for text in prompts for char in text):
        raise MalformedError("a prompt has half a character (a lone surrogate)")
    group = _group(value.get("group"), prompts)
    frames = [opened(one, f"{key}[{at}]", info.media) for at, one in enumerate(items)]
    total = sum(shape[0] * shape[1] * shape[2] * size for part in frames for shape, size, _ in part)
    if total > max_bytes:
        raise MalformedError(
            f"the pixels are {total:,} bytes, more than max_bytes, {max_bytes:,}: send fewer at a time"
        )
    hold(total)
    arrays = [[read() for _, _, read in part] for part in frames]
    pixels = tuple(np.stack(part) if info.media == "video" else part[0] for part in arrays)
    _check_groups(pixels, group, info)
    return Request(prompts=tuple(prompts), pixels=pixels, group=group)


def _group(value: Any, prompts: Sequence[str]) -> Int[np.ndarray, " item"]:
    """Return each item's group; those of one prompt are one where none are told."""
    if value is None:
        place = {text: at for at, text in enumerate(dict.fromkeys(prompts))}
        value = [place[text] for text in prompts]
    if not isinstance(value, list) or any(type(number) is not int or abs(number) >= 2**63 for number in value):
        raise MalformedError("`group` is to be a list of whole numbers")
    if len(value) != len(prompts):
        raise MalformedError(f"{len(prompts)} prompts and {len(value)} numbers in `group`: one each is wanted")
    return np.array(value, np.int64)


def _check_groups(pixels: Sequence[Any], group: np.ndarray, info: RewardInfo) -> None:
    if info.groupwise and len({(int(number), array.shape) for number, array in zip(group, pixels, strict=True)}) > len(
        set(group.tolist())
    ):
        raise MalformedError(f"this scorer compares the {info.media}s of a group, which are to be of one size")


# --- answers ---------------------------------------------------------------------------------------------------------


def answer(told: Answer) -> bytes:
    """Return the body that answers with scores."""
    scores = [float(score) if math.isfinite(score) else None for score in told.scores]
    failures = [line(text) for text in told.failures[:WORDS]]
    return written({"scores": scores, "failures": failures, "name": told.name, "revision": told.revision})


def longest_answer(items: int) -> int:
    """Return the most bytes that an answer can need."""
    return 2**18 + 64 * items


def read_answer(body: bytes, items: int) -> Answer:
    """Return a server's answer; NaN for null, and for what is not finite.

    Raises:
        MalformedError: if it is none to a request of so many items.
    """
    value = parsed(body, "its answer")
    scores, failures = value.get("scores"), value.get("failures", [])
    if not isinstance(scores, list) or any(s is not None and type(s) not in (int, float) for s in scores):
        raise MalformedError("its answer has no list `scores` of numbers and null")
    if len(scores) != items:
        raise MalformedError(f"its answer has {len(scores)} scores for {items} asked")
    if not isinstance(failures, list) or not all(isinstance(text, str) for text in failures):
        raise MalformedError("its answer's `failures` is no list of texts")
    if not all(isinstance(value.get(key), str) for key in ("name", "revision")):
        raise MalformedError("its answer does not say whose it is: `name` and `revision` are wanted")
    return Answer(
        scores=np.array([_finite(score) for score in scores], np.float64),
        failures=tuple(line(text) for text in failures[:WORDS]),
        name=line(value["name"]),
        revision=line(value["revision"], 2000),
    )


def _finite(score: int | float | None) -> float:  # JSON has both
    try:
        number = math.nan if score is None else float(score)
    except OverflowError:  # a whole number of 400 digits
        number = math.nan
    return number if math.isfinite(number) else math.nan


def error(text: str) -> bytes:
    """Return the body of a refusal."""
    return written({"error": line(text)})


def read_error(body: bytes) -> str:
    """Return what a refusal says, in one line; of what is none of the protocol, how it begins."""
    try:
        said = parsed(body, "").get("error")
    except MalformedError:
        said = None
    return line(said) if isinstance(said, str) else line(repr(body[:60]))
