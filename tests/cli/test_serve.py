"""`bench serve`: what arrives is looked at before it is read, requests are joined, and signals end it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
import torch
from PIL import Image
from servers import place, serving

from bench.contract import RewardInfo, UnavailableError
from bench.serving import protocol
from bench.serving.sent import item
from bench.serving.server import Limits
from rewards.remote import Remote
from rewards.shapes import Soft

INFO = RewardInfo(unit="grey", low=0.0, high=1.0, higher_is_better=True, revision="3", reference="a test")
IMAGE = np.full((3, 4, 5), 51, np.uint8)


class Grey:
    """The mean of an image, once it may say so; and the images of each call."""

    info = INFO

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may, self.begun = threading.Event(), threading.Event()
        self.may.set()

    def __call__(self, images, prompts, group):
        self.calls.append(list(images.shape))
        self.begun.set()
        assert self.may.wait(20)
        if "bad" in prompts:
            raise ValueError("a bad prompt")
        if "gone" in prompts:
            raise UnavailableError("my own server is down")
        if "exit" in prompts:
            raise SystemExit("enough")
        if "few" in prompts:
            return np.zeros(len(images) - 1)
        return images.double().flatten(1).mean(1).numpy()


def body(count: int = 1, prompt: str = "a", group: int = 0, image: np.ndarray = IMAGE) -> bytes:
    return protocol.request([item(image)] * count, [prompt] * count, [group] * count, "image")


def ask(server: Any, method: str, path: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*place(server), timeout=10)
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    read = answer.status, json.loads(answer.read())
    connection.close()
    return read


def raw(server: Any, *pieces: bytes, end: bool = False) -> bytes:
    """Return all that a server says to these bytes."""
    with socket.create_connection(place(server), timeout=10) as client:
        for piece in pieces:
            client.sendall(piece)
        if end:
            client.shutdown(socket.SHUT_WR)
        said = b""
        while piece := client.recv(1 << 16):
            said += piece
    return said


# --- what it tells ---------------------------------------------------------------------------------------------------


def test_health_needs_no_token_and_the_rest_does():
    with serving(Grey(), "grey", token="secret") as server:
        assert ask(server, "GET", "/health") == (200, {"status": "ok", "protocol": 1})
        wanted = (401, {"error": "a token is wanted: Authorization: Bearer TOKEN"})
        for shown in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}, {"Authorization": "Bearer "}):
            assert ask(server, "GET", "/info", None, **shown) == wanted
            assert ask(server, "POST", "/score", body(), **shown) == wanted
        assert ask(server, "GET", "/info", Authorization="Bearer secret")[0] == 200
        assert ask(server, "POST", "/score", body(), Authorization="Bearer secret")[0] == 200


def test_scores_come_with_the_name_and_revision_of_their_scorer():
    with serving(Grey(), "grey") as server:
        status, said = ask(server, "POST", "/score", body(2))
    assert (status, said["scores"]) == (200, [pytest.approx(0.2)] * 2)
    assert (said["failures"], said["name"], said["revision"]) == ([], "grey", "3")


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/score"), ("POST", "/info"), ("POST", "/../etc")])
def test_there_is_nothing_else(method: str, path: str):
    with serving(Grey(), "grey") as server:
        assert ask(server, method, path, b"{}" if method == "POST" else None)[0] == 404


# --- wrong clients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pickle.dumps({"prompts": ["a"]}), "the body is no JSON"),
        (b"<html>", "the body is no JSON"),
        (b"{}", "no list 'images'"),
        (body().replace(b'"raw": "', b'"raw": "!!'), "`raw` is not as long"),
        (body().replace(b"[4, 5, 3]", b"[40, 50, 3]"), "`raw` is not as long"),
        (body(9), "9 images are more than max_items, 8"),
    ],
)
def test_what_is_no_request_is_refused_in_one_line(data: bytes, says: str):
    reward = Grey()
    with serving(reward, "grey", max_items=8) as server:
        status, said = ask(server, "POST", "/score", data)
        assert status == 400
        assert says in said["error"]
        assert ask(server, "POST", "/score", body())[0] == 200
    assert len(reward.calls) == 1


def test_a_gigabyte_is_refused_before_it_is_read():
    with serving(Grey(), "grey") as server:
        said = raw(server, b"POST /score HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", bytes(1 << 16))
        assert said.startswith(b"HTTP/1.1 413 ")
        assert b"the body is 1,000,000,000 bytes: 1,048,576 at most are taken" in said


def test_a_client_that_asks_first_is_told_before_it_sends():
    head = b"POST /score HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with serving(Grey(), "grey") as server:
        assert raw(server, head % 10**9).startswith(b"HTTP/1.1 413 ")
        assert raw(server, head % len(body()), body()).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize(
    "length", [b"", b"Content-Length: -1\r\n", b"Content-Length: 1e3\r\n", b"Content-Length: \xb2\r\n"]
)
def test_a_body_without_a_length_is_refused(length: bytes):
    with serving(Grey(), "grey") as server:
        assert raw(server, b"POST /score HTTP/1.1\r\n" + length + b"\r\n{}").startswith(b"HTTP/1.1 411 ")


def test_a_body_in_chunks_is_refused():
    with serving(Grey(), "grey") as server:
        said = raw(
            server, b"POST /score HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n2\r\n{}\r\n"
        )
        assert said.startswith(b"HTTP/1.1 411 ")


def test_a_slow_body_is_not_waited_for():
    limits = Limits(reading=0.3)
    with serving(Grey(), "grey", limits=limits) as server:
        began = time.monotonic()
        said = raw(server, b"POST /score HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"{")
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"1 of the body's 1,000 bytes came, not in 0.3 s" in said
        assert time.monotonic() - began < 4
        assert b"HTTP/1.1 200" not in raw(server, b"GET /heal")  # a head that never ends is hung up on


def test_a_body_that_ends_early_is_refused():
    with serving(Grey(), "grey") as server:
        said = raw(server, b"POST /score HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{}", end=True)
        assert said.startswith(b"HTTP/1.1 408 ")


def test_what_is_no_http_is_refused_in_json():
    with serving(Grey(), "grey") as server:
        assert b'{"error": ' in raw(server, b"EHLO example.org and more words\r\n\r\n")
        assert raw(server, b"DELETE /score HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 501 ")


def test_more_clients_than_there_is_room_for_are_refused():
    with serving(Grey(), "grey", limits=Limits(connections=2)) as server:
        idle = [socket.create_connection(place(server)) for _ in range(2)]
        time.sleep(0.2)
        assert raw(server, b"").startswith(b"HTTP/1.1 503 ")
        for client in idle:
            client.close()
        within(lambda: not raw(server, b"GET /health HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 "))


def test_more_bodies_than_there_is_memory_for_are_refused():
    with serving(Grey(), "grey", limits=Limits(bodies=1), max_bytes=1 << 16) as server:
        with socket.create_connection(place(server)) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 65536\r\n\r\n{")
            within(lambda: server.bytes == 0)
            assert ask(server, "POST", "/score", body()) == (
                503,
                {"error": "too many bodies are being read: try again"},
            )
        within(lambda: server.bytes == 1 << 16)
        assert ask(server, "POST", "/score", body())[0] == 200


def test_images_that_wait_are_counted_by_their_pixels_not_by_their_files():
    file = io.BytesIO()
    Image.new("RGB", (100, 100)).save(file, "PNG")  # 30,000 bytes of pixels
    request = {"prompts": ["a"], "images": [{"png": base64.b64encode(file.getvalue()).decode()}]}
    data, reward = json.dumps(request).encode(), Grey()
    assert len(data) < 1000
    full = (503, {"error": "too many images wait to be scored: try again"})
    with serving(reward, "grey", limits=Limits(bodies=2), max_bytes=40_000) as server, ThreadPoolExecutor(3) as threads:
        reward.may.clear()
        waiting = [threads.submit(ask, server, "POST", "/score", data) for _ in range(2)]
        within(lambda: server.bytes == 80_000 - 60_000)
        assert ask(server, "POST", "/score", data) == full
        reward.may.set()
        assert [one.result()[0] for one in waiting] == [200, 200]
        within(lambda: server.bytes == 80_000)
        assert ask(server, "POST", "/score", data)[0] == 200


def within(so: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- failures of the scorer ------------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_scored_fails_alone():
    data = protocol.request([item(IMAGE)] * 3, ["a", "bad", "c"], [0, 1, 2], "image")
    with serving(Grey(), "grey") as server:
        status, said = ask(server, "POST", "/score", data)
    assert status == 200
    assert said["scores"] == [pytest.approx(0.2), None, pytest.approx(0.2)]
    assert said["failures"] == ["ValueError: a bad prompt"]


def test_images_none_of_which_can_be_scored_are_refused():
    with serving(Grey(), "grey") as server:
        assert ask(server, "POST", "/score", body(2, "bad")) == (422, {"error": "ValueError: a bad prompt"})


@pytest.mark.parametrize(
    ("prompt", "status", "says"),
    [
        ("gone", 503, "my own server is down"),
        ("exit", 500, "the scorer failed: SystemExit: enough"),
        ("few", 500, "returned shape (1,) for 2 images"),
    ],
)
def test_a_scorer_that_fails_is_told_and_asked_again(prompt: str, status: int, says: str):
    with serving(Grey(), "grey") as server:
        found, said = ask(server, "POST", "/score", body(2, prompt))
        assert found == status
        assert says in said["error"]
        assert ask(server, "POST", "/score", body())[0] == 200


# --- batches ---------------------------------------------------------------------------------------------------------


def together(reward: Grey, requests: list[bytes], **how: Any) -> list[tuple[int, Any]]:
    """Return the answers to requests that arrive, in order, while another one is being scored."""
    with serving(reward, "grey", **how) as server, ThreadPoolExecutor(20) as threads:
        reward.may.clear()
        reward.begun.clear()
        first = threads.submit(ask, server, "POST", "/score", body())
        assert reward.begun.wait(10)
        waiting = []
        for at, data in enumerate(requests):
            waiting.append(threads.submit(ask, server, "POST", "/score", data))
            within(lambda at=at, last=waiting[-1]: len(server.scoring.jobs) == at + 1 or last.done())
        reward.may.set()
        assert first.result()[0] == 200
        return [future.result() for future in waiting]


def grey(level: int, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    return np.full((3, *size), level, np.uint8)


def test_requests_that_wait_are_scored_together_and_answered_apart():
    reward = Grey()
    requests = [body(3, image=grey(level)) for level in (10, 20, 30, 40, 50)]
    answers = together(reward, requests, batch=9)
    assert reward.calls == [[1, 3, 4, 5], [9, 3, 4, 5], [6, 3, 4, 5]]
    for (status, said), level in zip(answers, (10, 20, 30, 40, 50), strict=True):
        assert (status, said["scores"]) == (200, [pytest.approx(level / 255)] * 3)


def test_alone_no_request_is_joined():
    reward = Grey()
    together(reward, [body(3)] * 2, alone=True)
    assert [shape[0] for shape in reward.calls] == [1, 3, 3]


def test_requests_of_a_scorer_that_compares_images_are_never_joined():
    class Ranks(Grey):
        info = replace(INFO, groupwise=True)

    reward = Ranks()
    together(reward, [body(3)] * 2)
    assert [shape[0] for shape in reward.calls] == [1, 3, 3]


def test_a_group_that_is_larger_than_a_batch_is_whole_where_images_are_compared_and_cut_where_not():
    class Ranks(Grey):
        info = replace(INFO, groupwise=True)

    for reward, calls in ((Ranks(), [5]), (Grey(), [2, 2, 1])):
        with serving(reward, "grey", batch=2) as server:
            assert ask(server, "POST", "/score", body(5))[0] == 200
        assert [shape[0] for shape in reward.calls] == calls


class Least(Grey):
    """How much lighter an image is than the darkest of its group."""

    info = replace(INFO, groupwise=True)

    def __call__(self, images, prompts, group):
        level = super().__call__(images, prompts, group)
        return np.array([level[at] - level[group == number].min() for at, number in enumerate(group)])


def test_groups_that_lie_among_each_other_are_compared_whole_where_an_image_fails():
    levels, group = [10, 20, 30, 40, 50, 60], [7, 2, 7, 2, 3, 3]
    prompts = ["a", "b", "a", "b", "bad", "c"]
    data = protocol.request([item(grey(level)) for level in levels], prompts, group, "image")
    reward = Least()
    with serving(reward, "grey") as server:
        said = ask(server, "POST", "/score", data)[1]
    assert said["scores"] == [*[pytest.approx(score / 255) for score in (0, 0, 20, 20)], None, None]
    assert [shape[0] for shape in reward.calls] == [6, 2, 2, 2]


def test_images_of_several_sizes_are_scored_by_size_and_answered_in_order():
    reward = Grey()
    images = [grey(10), grey(20, (6, 6)), grey(30), grey(40, (6, 6))]
    data = protocol.request([item(image) for image in images], ["a"] * 4, [0] * 4, "image")
    with serving(reward, "grey") as server:
        said = ask(server, "POST", "/score", data)[1]
    assert said["scores"] == pytest.approx([10 / 255, 20 / 255, 30 / 255, 40 / 255])
    assert reward.calls == [[2, 3, 4, 5], [2, 3, 6, 6]]


def test_a_failure_of_one_request_is_not_told_to_another():
    (_, first), (status, said), (_, last) = together(Grey(), [body(2), body(2, "bad"), body(2)])
    assert (status, said) == (422, {"error": "ValueError: a bad prompt"})
    assert first["failures"] == last["failures"] == []
    assert first["scores"] == last["scores"] == [pytest.approx(0.2)] * 2


def test_more_requests_than_may_wait_are_refused():
    answers = together(Grey(), [body()] * 4, waiting=2)
    assert [status for status, _ in answers] == [200, 200, 503, 503]
    assert answers[3][1] == {"error": "2 requests wait already"}


def test_a_server_that_ends_refuses_what_waits_and_answers_what_is_being_scored():
    reward = Grey()
    reward.may.clear()
    with serving(reward, "grey") as server, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, server, "POST", "/score", body())
        assert reward.begun.wait(10)
        second = threads.submit(ask, server, "POST", "/score", body())
        within(lambda: len(server.scoring.jobs) == 1)
        server.scoring.end(0.0)
        assert second.result() == (503, {"error": "the server is ending"})
        reward.may.set()
        assert first.result()[0] == 200


def test_scores_do_not_depend_on_who_else_asks():
    images = torch.linspace(0, 1, 12 * 3 * 6 * 5).reshape(12, 3, 6, 5)
    with serving(Grey(), "grey") as server, ThreadPoolExecutor(12) as threads:
        scorer = Remote(url=server.url)
        each = [threads.submit(scorer, images[i : i + 1], ["a"], np.array([i])) for i in range(12)]
        found = np.concatenate([one.result() for one in each])
    np.testing.assert_allclose(found, Grey()(images, ["a"] * 12, np.arange(12)), atol=1e-12)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "unknown reward 'nonsense'"),
        (["soft(a=1)"], "soft takes no options"),
        (["hpsv2.1"], "is not on this machine: `bench prepare --rewards hpsv2.1` fetches it"),
        (["soft", "--port", "70000"], "--port 70000: a whole number from 0 to 65535"),
        (["soft", "--batch", "0"], "--batch 0: at least one"),
        (["soft", "--max-bytes", "1"], "--max-bytes 1: at least 65536"),
        (["soft", "--host", "0.0.0.0"], "is reached from other machines, and there is no token"),
        (["soft", "--token-file", "nowhere"], "token file nowhere cannot be read"),
        (["soft", "--device", "blue"], "--device blue: "),
        ([], "the following arguments are required: SCORER"),
    ],
)
def test_wrong_input_is_a_line_and_status_2(call, monkeypatch, words: list[str], says: str):
    monkeypatch.delenv("ARBOR_TOKEN", raising=False)
    answer = call(["serve", *words])
    assert answer.status == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1


def test_a_port_that_is_taken_is_wrong_input(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = call(["serve", "soft", "--port", str(taken.getsockname()[1])])
    assert answer.status == 2
    assert "cannot be listened on (Address already in use): choose another" in answer.err


def test_weights_of_another_model_are_told_before_anyone_is_listened_to(call, tmp_path: Path):
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"x")
    answer = call(["serve", f"hpsv2.1(weights={tmp_path})"])
    assert answer.status == 2
    assert "is not HPS-v2.1's HPS_v2.1_compressed.pt" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it(call, monkeypatch, number: signal.Signals, status: int):
    """In this process: the waiting main thread is what a signal comes to."""
    urls = []

    def ready(line: str) -> None:
        urls.append(line.split("remote(")[1].split(")")[0])
        found = Remote(url=urls[0])
        assert found.info == Soft.info
        threading.Timer(0.1, signal.raise_signal, [number]).start()

    monkeypatch.setattr("builtins.print", lambda line, **_: ready(line) if "served" in line else None)
    assert call(["serve", "soft", "--port", "0"]).status == status
    with pytest.raises(UnavailableError, match="refused"):
        _ = Remote(url=urls[0]).info


def test_a_plugin_is_served_with_its_options(call, tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from bench.contract import RewardInfo\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine:\n"
        "    scale: float = 1.0\n"
        "    info = RewardInfo(unit='u', low=0.0, high=1.0, higher_is_better=True, revision='1', reference='')\n"
        "    def __call__(self, images, prompts, group):\n"
        "        return images.double().flatten(1).mean(1).numpy() * self.scale\n"
        "REWARDS = {'mine': Mine}\n"
    )
    found = []

    def ready(line: str) -> None:
        scorer = Remote(url=line.split("remote(")[1].split(")")[0])
        found.append((line, scorer.label, scorer(torch.ones(1, 3, 4, 4), ["a"], np.zeros(1, np.int64)).tolist()))
        threading.Timer(0.05, signal.raise_signal, [signal.SIGTERM]).start()

    monkeypatch.setattr("builtins.print", lambda line, **_: ready(line) if "served" in line else None)
    assert call(["serve", "mine(scale=2)", "--plugin", "mine.py", "--port", "0"]).status == 0
    (line, label, scores), *_ = found
    assert line.startswith("mine(scale=2.0) [u] is served at http://127.0.0.1:")
    assert (label, scores) == ("mine(scale=2.0)", [2.0])


@pytest.mark.slow
def test_a_process_of_its_own_says_where_it_is_and_ends_cleanly():
    with servers.process("soft", ARBOR_TOKEN="") as (running, url):
        assert Remote(url=url).label == "soft"
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out, err) == (0, "", "")
