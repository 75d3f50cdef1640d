"""A scorer on a server scores as it does here, or says why it does not; no server makes it say a number."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from servers import Fake, faking, http, place, serving

from bench.contract import RewardInfo, UnavailableError
from bench.embedded import world
from bench.embedded.training import seeded
from bench.registry import InputError, load
from bench.score import Scores, score
from bench.scorers.lookup import label, looked_at, named
from bench.serving import protocol
from bench.serving.client import NotThereError
from rewards.hpsv2 import HPSv2
from rewards.remote import REWARDS, Remote, _warn_of_open
from rewards.shapes import Soft

INFO = RewardInfo(unit="grey", low=0.0, high=1.0, higher_is_better=True, revision="3", reference="a test")
TOLD = protocol.About(name="grey", info=INFO, max_items=8, max_bytes=1 << 16)
IMAGES = torch.linspace(0, 1, 4 * 3 * 6 * 5).reshape(4, 3, 6, 5)
PROMPTS = ["a", "a", "b", "b"]
GROUP = np.array([0, 0, 1, 1])


class Grey:
    """The mean of an image, and what it was asked."""

    info = INFO

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], list[str], list[int]]] = []

    def __call__(self, images, prompts, group):
        self.asked.append((list(images.shape), list(prompts), group.tolist()))
        return images.double().flatten(1).mean(1).numpy()


def remote(url: str, **how: Any) -> Remote:
    quick: dict[str, Any] = {"timeout": 5.0, "patience": 0.0}
    return Remote(url=url, **quick | how)


def asked(scorer: Remote, images: torch.Tensor = IMAGES) -> np.ndarray:
    return scorer(images, PROMPTS, GROUP)


@contextmanager
def answering(reply: bytes | Callable[[socket.socket, bytes], None], about: protocol.About = TOLD) -> Iterator[Fake]:
    """Yield a server that says what it is, and answers /score so."""

    def answer(client: socket.socket, path: str, body: bytes) -> None:
        if path == "/info":
            client.sendall(http(protocol.about(about)))
        elif isinstance(reply, bytes):
            client.sendall(reply)
        else:
            reply(client, body)

    with faking(answer) as fake:
        yield fake


def scored(reward: Any, images: torch.Tensor, prompts: Sequence[str], group: np.ndarray, chunk: int) -> Scores:
    return score({"grey": reward}, images, prompts, group, chunk)


def said(**changes: Any) -> bytes:
    right = {"scores": [0.1, 0.2, 0.3, 0.4], "failures": [], "name": "grey", "revision": "3"}
    return json.dumps(right | changes).encode()


# --- as in process ---------------------------------------------------------------------------------------------------


def test_the_scorer_is_named_remote():
    assert dict(REWARDS) == {"remote": Remote}


def rendered() -> tuple[torch.Tensor, list[str]]:
    prompts = list(world.prompts("heldout")[:12])
    drawn = world.render([world.draw(world.parse(prompt), seeded(0)[0]) for prompt in prompts])
    return torch.from_numpy(drawn).float(), prompts


def test_soft_scores_to_the_last_bit_as_in_process():
    images, prompts = rendered()
    group = np.arange(12) // 4
    with serving(Soft()) as server:
        found = remote(server.url)
        assert found.info == Soft.info
        np.testing.assert_array_equal(found(images, prompts, group), Soft()(images, prompts, group))


def test_a_scorer_of_eight_bits_scores_to_the_last_bit_as_in_process(tmp_path):
    from bench.scorers.tiny import make

    make("hpsv2.1", tmp_path)
    here = HPSv2(weights=str(tmp_path))
    images, prompts = rendered()
    group = np.arange(12) // 4
    with serving(here, "hpsv2.1") as server:
        np.testing.assert_array_equal(remote(server.url)(images, prompts, group), here(images, prompts, group))


def test_what_is_sent_is_what_the_scorer_sees():
    reward = Grey()
    with serving(reward, "grey") as server:
        np.testing.assert_array_equal(asked(remote(server.url)), Grey()(IMAGES, PROMPTS, GROUP))
    assert reward.asked == [([4, 3, 6, 5], PROMPTS, [0, 0, 1, 1])]


def test_videos_are_sent_frame_by_frame():
    class Moving(Grey):
        info = replace(INFO, media="video")

    videos = torch.stack([IMAGES, IMAGES.flip(0), IMAGES, IMAGES])
    reward = Moving()
    with serving(reward, "grey") as server:
        np.testing.assert_array_equal(asked(remote(server.url), videos), Moving()(videos, PROMPTS, GROUP))
    assert reward.asked[0][0] == [4, 4, 3, 6, 5]


@pytest.mark.parametrize("limits", [{"max_items": 3}, {"max_bytes": 1200}])
def test_requests_are_as_large_as_the_server_takes(limits: dict[str, Any]):
    reward = Grey()
    with serving(reward, "grey", **limits) as server:
        np.testing.assert_array_equal(asked(remote(server.url)), Grey()(IMAGES, PROMPTS, GROUP))
    assert len(reward.asked) > 1


def test_requests_are_small_enough_for_a_slow_link_but_no_group_is_cut(monkeypatch):
    monkeypatch.setattr("rewards.remote.LARGE", 1300)  # two images
    for groupwise, group, sizes in ((False, GROUP, [2, 2]), (True, GROUP, [2, 2]), (True, 0 * GROUP, [4])):
        reward = Grey()
        reward.info = replace(INFO, groupwise=groupwise)
        with serving(reward, "grey") as server:
            np.testing.assert_array_equal(remote(server.url)(IMAGES, PROMPTS, group), Grey()(IMAGES, PROMPTS, group))
        assert [shape[0] for shape, _, _ in reward.asked] == sizes


def test_an_image_that_is_larger_than_the_server_takes_is_failed_with_the_reason():
    with serving(Grey(), "grey", max_bytes=500) as server:
        found = scored(remote(server.url), IMAGES, PROMPTS, GROUP, 8)
    assert found.failed.all()
    assert "max_bytes 500): see --max-bytes there" in found.failures[0]


def test_the_images_of_a_group_are_sent_together_to_a_scorer_that_compares_them():
    class Ranks(Grey):
        info = replace(INFO, groupwise=True)

    reward = Ranks()
    with serving(reward, "grey", max_items=3) as server:
        Remote(url=server.url)(IMAGES, PROMPTS, np.array([0, 1, 0, 1]))
        with pytest.raises(RuntimeError, match="a group of 4 is more than"):
            Remote(url=server.url)(IMAGES, PROMPTS, np.array([0, 0, 0, 0]))
    assert [group for _, _, group in reward.asked] == [[0, 0], [1, 1]]


def test_an_image_of_nan_fails_alone_and_is_not_sent():
    reward = Grey()
    images = IMAGES.clone()
    images[1, 0, 0, 0] = torch.nan
    with serving(reward, "grey") as server:
        found = asked(remote(server.url), images)
    assert np.isnan(found).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(found[2:], Grey()(IMAGES, PROMPTS, GROUP)[2:])
    assert reward.asked[0][0] == [3, 3, 6, 5]


def test_a_group_with_an_image_of_nan_fails_whole_where_images_are_compared():
    class Ranks(Grey):
        info = replace(INFO, groupwise=True)

    images = IMAGES.clone()
    images[1] = torch.inf
    with serving(Ranks(), "grey") as server:
        assert np.isnan(asked(remote(server.url), images)).tolist() == [True, True, False, False]


def test_images_of_nan_alone_ask_for_nothing():
    reward = Grey()
    with serving(reward, "grey") as server:
        assert np.isnan(asked(remote(server.url), torch.full_like(IMAGES, torch.nan))).all()
    assert reward.asked == []


@pytest.mark.parametrize(
    ("images", "error"),
    [(IMAGES[0], ValueError), ((IMAGES * 255).to(torch.uint8), TypeError), (IMAGES * 255, ValueError)],
)
def test_what_is_no_image_is_refused_before_it_is_sent(images: torch.Tensor, error: type[Exception]):
    reward = Grey()
    with serving(reward, "grey") as server, pytest.raises(error):
        asked(remote(server.url), images)
    assert reward.asked == []


class Picky(Grey):
    """Takes no image of a prompt b."""

    def __call__(self, images, prompts, group):
        if "b" in prompts:
            raise ValueError("b is not in my dictionary")
        return super().__call__(images, prompts, group)


def test_what_the_scorer_cannot_score_is_told_as_in_process():
    images, prompts, group = IMAGES, ["a", "b", "a", "b"], np.array([0, 0, 1, 1])
    with serving(Picky(), "grey") as server:
        found = scored(remote(server.url), images, prompts, group, 8)
    here = scored(Picky(), images, prompts, group, 8)
    assert found.failures == here.failures == ("grey: ValueError: b is not in my dictionary",)
    np.testing.assert_array_equal(found.reward["grey"], here.reward["grey"])
    assert found.failed.tolist() == [False, True, False, True]


def test_images_that_are_all_refused_are_failed_with_the_servers_words():
    with serving(Picky(), "grey") as server:
        with pytest.raises(RuntimeError, match=r"^ValueError: b is not in my dictionary$"):
            remote(server.url)(IMAGES, ["b"] * 4, GROUP)
        found = scored(remote(server.url), IMAGES, PROMPTS, GROUP, 8)
    assert found.failed.tolist() == [False, False, True, True]


# --- servers that are none, or lie -----------------------------------------------------------------------------------

HTML = b"<!doctype html><title>It works!</title>"
GREAT = 10**9


def slowly(client: socket.socket, body: bytes) -> None:
    client.sendall(http(said())[:40])
    for _ in range(100):
        time.sleep(0.1)
        client.sendall(b" ")


def endlessly(client: socket.socket, body: bytes) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(GREAT >> 20):
        client.sendall(bytes(1 << 20))


ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing, for ever": (lambda client, body: time.sleep(20), "no answer in 0.5 s"),
    "a byte now and then": (slowly, "no answer in 0.5 s"),
    "nothing": (lambda client, body: client.close(), "does not answer"),
    "a body longer than it is": (http(said(), length=len(said()) + 9), "bytes were announced and"),
    "a body shorter than it is": (http(said(), length=len(said()) - 9), "its answer is no JSON"),
    "a gigabyte announced": (http(b"{", length=GREAT), "announced as 1,000,000,000 bytes"),
    "a gigabyte unannounced": (endlessly, "the answer has more than 262,400 bytes"),
    "HTML": (http(HTML), "its answer is no JSON"),
    "HTML of an error": (http(HTML, 500), "status 500: .*It works!"),
    "an error": (http(b'{"error": "out of memory"}', 500), "status 500: out of memory"),
    "too busy": (http(b'{"error": "64 requests wait already"}', 503), "status 503: 64 requests wait"),
    "elsewhere": (http(b"", 302, headers=["Location: http://127.0.0.1:1/score"]), "no server of a scorer.*status 302"),
    "not found": (http(b"", 404), "no server of a scorer.*status 404"),
    "too large": (http(b'{"error": "too large"}', 413), "status 413, too large"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "speaks no HTTP"),
    "a pickle": (http(b"\x80\x04N."), "its answer is no JSON"),
    "a score too few": (http(said(scores=[0.1, 0.2, 0.3])), "3 scores for 4 asked"),
    "a score too many": (http(said(scores=[0.1] * 5)), "5 scores for 4 asked"),
    "scores as text": (http(said(scores=["0.1"] * 4)), "no list `scores`"),
    "no scores": (http(b"{}"), "no list `scores`"),
    "another name": (http(said(name="soft")), "serves soft@3 now, and this run began with grey@3"),
    "another revision": (http(said(revision="4")), "serves grey@4 now, and this run began with grey@3"),
    "nobody's": (http(said(name=None)), "does not say whose it is"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_answers_what_is_no_answer_stops_the_run_and_says_what_it_was(what: str):
    reply, says = ANSWERS[what]
    with answering(reply) as fake:
        scorer = remote(fake.url, timeout=0.5)
        assert scorer.info == INFO
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=says) as raised:
            asked(scorer)
    assert time.monotonic() - began < 3
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("score", ["null", "NaN", "-Infinity", "1e999"])
def test_a_score_that_is_no_number_is_a_failed_image(score: str):
    with answering(http(said().replace(b"0.2", score.encode()))) as fake:
        np.testing.assert_array_equal(asked(remote(fake.url)), [0.1, np.nan, 0.3, 0.4])


def test_images_that_a_server_refuses_are_failed_and_the_run_goes_on():
    with answering(http(b'{"error": "a side\\nof 6 is too short"}', 422)) as fake:
        found = scored(remote(fake.url), IMAGES, PROMPTS, GROUP, 8)
    assert found.failed.all()
    assert found.failures == ("grey: RuntimeError: a side of 6 is too short",)


INFOS: dict[str, tuple[bytes, str]] = {
    "HTML": (http(HTML), "no server of a scorer: what it tells of itself is no JSON"),
    "an object": (http(b"{}"), "names no protocol"),
    "another protocol": (http(protocol.about(TOLD).replace(b'"protocol": 1', b'"protocol": 2')), "protocol 2"),
    "not found": (http(HTML, 404), "status 404"),
    "a gigabyte": (http(b"{", length=GREAT), "announced as 1,000,000,000 bytes"),
    "starting": (http(b'{"error": "starting"}', 503), "status 503, starting"),
    "a name of two lines": (http(protocol.about(TOLD).replace(b'"grey", "info"', b'"a\\nb", "info"')), "name is none"),
}


@pytest.mark.parametrize("what", INFOS)
def test_what_is_no_server_of_a_scorer_is_wrong_input(what: str):
    reply, says = INFOS[what]
    with faking(lambda client, path, body: client.sendall(reply)) as fake, pytest.raises(InputError, match=says) as bad:
        looked_at(f"remote({fake.url})", load("rewards"))
    assert "\n" not in str(bad.value)


def test_a_file_server_is_no_server_of_a_scorer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=files.serve_forever, daemon=True).start()
    with pytest.raises(InputError, match="no server of a scorer, or not of this version: status 404"):
        looked_at(f"remote(http://127.0.0.1:{files.server_address[1]})", load("rewards"))
    files.shutdown()
    files.server_close()


def free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_is_not_there_is_wrong_input_at_once():
    began = time.monotonic()
    with pytest.raises(InputError, match=r"does not answer .*refused.*: start it with `bench serve SCORER`"):
        looked_at(f"remote({free()})", load("rewards"))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("url", ["http://me:geheim@a", "http://a/?key=geheim", "http://me:geheim@a:99999"])
@pytest.mark.parametrize("scorer", ["remote", "unifiedreward"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(scorer: str, url: str):
    with pytest.raises(InputError, match=rf"{scorer}: .*no user, query or fragment") as told:
        looked_at(f"{scorer}({url})", load("rewards"))
    assert "geheim" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("remote", "lacks an option: url"),
        ("remote(7)", "text is wanted"),
        ("remote(localhost:8000)", "is no address of a server"),
        ("remote(ftp://localhost)", "is no address of a server"),
        ("remote(http://)", "is no address of a server"),
        ("remote(http://a:b)", "is no address of a server"),
        ("remote(http://a:99999)", "is no address of a server"),
        ("remote(http://a..b)", "is no address of a server"),
        ("remote(http://a/?token=secret)", "no user, query or fragment.* give a secret as .ARBOR_TOKEN"),
        ("remote(http://me:secret@a)", "no user, query or fragment.* give a secret as .ARBOR_TOKEN"),
        ("remote(http://a,token=secret)", "remote has no option 'token'; it has url, token_file"),
        ("remote(http://a,timeout=0)", "timeout=0: seconds are wanted"),
        ("remote(http://a,patience=-1)", "patience=-1: seconds are wanted"),
        ("remote(http://a,token_file=/nowhere)", "token file /nowhere cannot be read"),
    ],
)
def test_a_wrong_option_is_wrong_input(text: str, says: str):
    with pytest.raises(InputError, match=says):
        looked_at(text, load("rewards"))


# --- patience --------------------------------------------------------------------------------------------------------


def flaky(times: int, failure: bytes) -> Callable[[socket.socket, bytes], None]:
    """Return what answers rightly, after so many failures."""
    left = [times]

    def reply(client: socket.socket, body: bytes) -> None:
        left[0] -= 1
        client.sendall(http(said()) if left[0] < 0 else failure)

    return reply


CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"
"""Of an answer that goes on, and breaks off there."""


@pytest.mark.parametrize(
    "failure",
    [b"", http(b'{"error": "starting"}', 503), http(b"", 500), http(said())[:-5], http(said())[:12], CHUNK],
)
def test_a_server_that_comes_back_is_waited_for(failure: bytes):
    with answering(flaky(2, failure)) as fake:
        assert asked(remote(fake.url, patience=10.0)).tolist() == [0.1, 0.2, 0.3, 0.4]
        assert fake.asked == ["/info", "/score", "/score", "/score"]


def test_after_a_server_was_gone_each_call_asks_it_once_until_it_is_back():
    with answering(flaky(4, http(b"", 503))) as fake:
        scorer = remote(fake.url, patience=0.15)  # asks at 0, 0.1 and 0.15 s
        counts = []
        for _ in range(2):
            with pytest.raises(UnavailableError):
                asked(scorer)
            counts.append(fake.asked.count("/score"))
        assert counts[1] == counts[0] + 1
        while fake.asked.count("/score") < 4:
            with pytest.raises(UnavailableError):
                asked(scorer)
        assert asked(scorer).tolist() == [0.1, 0.2, 0.3, 0.4]


def test_a_server_of_other_weights_on_the_same_port_is_found_out_at_the_first_answer():
    class Newer(Grey):
        info = replace(INFO, revision="4")

    with serving(Grey(), "grey") as server:
        scorer, port = remote(server.url), place(server)[1]
        assert np.isfinite(asked(scorer)).all()
    with serving(Newer(), "grey", port=port), pytest.raises(UnavailableError, match=r"serves grey@4 now, .* grey@3"):
        asked(scorer)


def test_an_answer_that_comes_late_is_not_waited_for_twice():
    with answering(lambda client, body: time.sleep(5)) as fake:
        with pytest.raises(UnavailableError, match=r"no answer in 0.2 s; timeout= gives it more time"):
            asked(remote(fake.url, timeout=0.2, patience=30.0))
        assert fake.asked == ["/info", "/score"]


# --- records and tokens ----------------------------------------------------------------------------------------------


def test_records_know_the_servers_scorer_and_not_its_address():
    with serving(Soft()) as server:
        text = f"remote({server.url},timeout=5)"
        scorers, labelled = named([f"{text}:0.5"], load("rewards"))
        assert labelled == ["soft:0.5"]
        assert scorers.revisions() == named(["soft"], load("rewards"))[0].revisions()
        assert scorers.written == {"soft": text}
        assert label(text, scorers["soft"]) == "soft"


def test_a_default_judge_runs_where_its_server_is_named():
    with serving(Soft()) as server:
        found, labelled = named([f"remote({server.url}):0.5", "soft"], load("rewards"))
    assert labelled == ["soft:0.5", "soft"]
    assert found.written == {"soft": f"remote({server.url})"}


def test_a_token_is_shown_and_printed_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("ARBOR_TOKEN", raising=False)
    (tmp_path / "token").write_text("very-secret\n")
    (tmp_path / "other").write_text("half-secret\n")
    with serving(Grey(), "grey", token="very-secret") as server:
        right = remote(server.url, token_file=str(tmp_path / "token"))
        assert np.isfinite(asked(right)).all()
        assert "secret" not in repr(right)
        for wrong in (remote(server.url), remote(server.url, token_file=str(tmp_path / "other"))):
            with pytest.raises(
                UnavailableError, match=r"wants its token: give `token_file`, or set \$ARBOR_TOKEN"
            ) as no:
                _ = wrong.info
            assert "secret" not in str(no.value)
        monkeypatch.setenv("ARBOR_TOKEN", "very-secret")
        assert np.isfinite(asked(remote(server.url))).all()


@pytest.mark.parametrize(
    ("url", "token", "warns"),
    [
        ("http://192.0.2.1:9", "secret", True),
        ("http://192.0.2.1:9", "", False),
        ("https://192.0.2.1:9", "secret", False),
        ("http://127.0.0.1:9", "secret", False),
        ("http://[::1]:9", "secret", False),
    ],
)
def test_a_token_that_others_can_read_is_warned_of_once(monkeypatch, capsys, url: str, token: str, warns: bool):
    monkeypatch.setenv("ARBOR_TOKEN", token)
    _warn_of_open.cache_clear()

    def nobody(*_: Any, **__: Any) -> tuple[int, bytes]:
        raise NotThereError("nobody")

    monkeypatch.setattr("rewards.remote.asked", nobody)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            _ = remote(url).info
    assert capsys.readouterr().err == f"{url} is no https: whoever is on the way can read the token\n" * warns


def test_no_proxy_of_the_environment_is_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(Grey(), "grey") as server:
        assert remote(server.url).info == INFO
