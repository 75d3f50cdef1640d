import json
import re
import socket
import threading
import time

import pytest
from chat_server import ChatServer, Reply, prompt_of
from servers import faking, http

from bench.contract import UnavailableError
from bench.scorers import openai_chat
from bench.scorers.openai_chat import Server, ask, served


@pytest.fixture(autouse=True)
def _without_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(openai_chat, "PAUSES", (0.01, 0.02))


def body(prompt):
    return lambda: json.dumps({"messages": [{"content": [{"text": f"[{prompt}]"}]}]}).encode()


def server(state, **options):
    return Server(**{"url": state.url, "timeout": 30.0, "patience": 0.1, **options})


def asked(reply, **options):
    """What a server that always answers alike is understood to say."""
    with ChatServer(answer=lambda request: reply).running() as state:
        return ask(server(state, **options), [body("a")])[0]


def test_the_text_of_the_first_choice_is_the_answer():
    assert asked(Reply(text="Final Score: 4")).text == "Final Score: 4"


def test_answers_stand_in_the_order_of_the_questions_whatever_order_they_come_in():
    def slower_first(request):
        at = int(prompt_of(request))
        return Reply(text=f"answer {at}", wait=0.1 - 0.01 * at)

    with ChatServer(answer=slower_first).running() as state:
        answers = ask(server(state), [body(str(at)) for at in range(10)])
    assert [answer.text for answer in answers] == [f"answer {at}" for at in range(10)]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_as_many_questions_as_allowed_are_under_way_at_once(concurrency):
    with ChatServer(answer=lambda request: Reply(wait=0.1)).running() as state:
        ask(server(state, concurrency=concurrency), [body("a")] * 12)
    assert state.most == concurrency


def test_a_busy_server_is_asked_again():
    replies = iter([Reply(status=429, raw=b"slow down"), Reply(status=503), Reply(text="at last")])
    with ChatServer(answer=lambda request: next(replies)).running() as state:
        assert ask(server(state, patience=5.0), [body("a")])[0].text == "at last"
    assert len(state.requests) == 3


def test_a_server_that_comes_back_within_patience_is_found_again():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state, found = ChatServer(url=f"http://127.0.0.1:{port}/v1"), []
    later = threading.Thread(target=lambda: found.extend(ask(server(state, patience=20.0), [body("a")])))
    later.start()
    time.sleep(0.1)
    with state.running(port):
        later.join(30)
    assert [answer.text for answer in found] == ["Final Score: 3"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_stays_busy_is_away(status):
    with pytest.raises(UnavailableError, match=rf"answers {status} with 'overloaded', after \d+ attempts"):
        asked(Reply(status=status, raw=b'{"error": {"message": "overloaded"}}'))


def test_a_server_that_is_not_there_is_away():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        UnavailableError, match=r"does not answer \(no connection: Connection refused\).*the same command"
    ):
        ask(Server(url=url, patience=0.05), [body("a")] * 3)


GOOD = Reply(text="at last").body()
CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\n", CHUNK, http(GOOD, length=9999), "late"])
def test_an_answer_that_breaks_off_or_comes_too_late_is_asked_for_again(first):
    replies = iter([first, http(GOOD)])

    def reply(client, path, body):
        given = next(replies)
        time.sleep(2.0) if given == "late" else client.sendall(given)

    with faking(reply) as fake:
        answers = ask(Server(url=f"{fake.url}/v1", timeout=0.5, patience=20.0), [body("a")])
    assert [answer.text for answer in answers] == ["at last"]
    assert fake.asked == ["/v1/chat/completions"] * 2


def test_what_speaks_no_http_is_no_such_server():
    with (
        faking(lambda client, path, body: client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as fake,
        pytest.raises(UnavailableError, match=r"speaks no HTTP.*no server of OpenAI's chat protocol"),
    ):
        ask(Server(url=f"{fake.url}/v1", patience=20.0), [body("a")])
    assert len(fake.asked) == 1


@pytest.mark.parametrize("reply", [Reply(wait=30.0), Reply(trickle=True), Reply(length=4_000_000, wait=0.0)])
def test_a_server_that_hangs_trickles_or_promises_more_than_it_sends_is_given_up_on(reply):
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no answer in 0\.3 s|bytes were announced"):
        asked(reply, timeout=0.3, patience=0.0)
    assert time.monotonic() - start < 15


def test_the_others_are_hung_up_when_one_question_finds_the_server_away():
    def one_fails(request):
        return Reply(status=401, raw=b"no") if prompt_of(request) == "3" else Reply(wait=30.0)

    start = time.monotonic()
    with ChatServer(answer=one_fails).running() as state, pytest.raises(UnavailableError, match="answers 401"):
        ask(server(state, concurrency=4), [body(str(at)) for at in range(40)])
    assert time.monotonic() - start < 15
    assert len(state.requests) < 10


@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=b"<html><h1>It works!</h1></html>", kind="text/html"),
        Reply(raw=Reply().body()[:40]),
        Reply(raw=b""),
        Reply(raw=b"[1, 2]"),
        Reply(raw=b"[" * 100_000),
    ],
)
def test_what_is_no_json_object_comes_from_no_such_server(reply):
    with pytest.raises(UnavailableError, match="answers 200 with"):
        asked(reply)


@pytest.mark.parametrize("raw", [b'{"scores": [1]}', b'{"choices": 3}', b'{"choices": ["a"]}', b'{"error": "no"}'])
def test_json_of_another_shape_comes_from_no_such_server(raw):
    with pytest.raises(UnavailableError, match="no server of OpenAI's chat protocol"):
        asked(Reply(raw=raw))


@pytest.mark.parametrize("status", [301, 307, 404, 405])
def test_redirections_and_other_paths_are_no_such_server(status):
    with ChatServer().running() as other:
        elsewhere = f"{other.url}/chat/completions"
        with pytest.raises(UnavailableError, match=rf"answers {status}.*ends in /v1"):
            asked(Reply(status=status, location=elsewhere))
        assert other.requests == []


def test_a_gigabyte_is_not_read():
    with pytest.raises(UnavailableError, match="8,388,608 at most"):
        asked(Reply(length=1 << 30))
    with pytest.raises(UnavailableError, match="8,388,608 at most"):
        asked(Reply(raw=b" " * (9 << 20)))
    with pytest.raises(UnavailableError, match="more than 8,388,608 bytes"):
        asked(Reply(raw=b" " * (9 << 20), trickle=True))  # no length, no end


@pytest.mark.parametrize(
    ("reply", "flaw"),
    [
        (Reply(raw=b'{"choices": []}'), "no choices"),
        (Reply(text=""), "without text"),
        (Reply(text=" \n"), "without text"),
        (Reply(text=None, finish="content_filter"), r"without text \(finish_reason content_filter\)"),
        (Reply(raw=b'{"choices": [{"message": 3}]}'), "without text"),
        (Reply(text="Final Score: 1", finish="length"), "cut short: raise max_tokens"),
        (Reply(status=400, raw=b'{"message": "too many tokens"}'), "answers 400 with 'too many tokens'"),
        (Reply(status=422, raw=b"no"), "answers 422 with 'no'"),
        (Reply(status=413), "answers 413"),
    ],
)
def test_an_answer_that_says_nothing_fails_alone(reply, flaw):
    answer = asked(reply)
    assert answer.text == ""
    assert re.search(flaw, answer.flaw)


def test_the_key_comes_from_the_environment_and_is_in_no_message(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")

    def repeat(request):
        return Reply(status=403, raw=json.dumps({"error": {"message": "Bearer sk-secret is unknown"}}).encode())

    with ChatServer(answer=repeat).running() as state:
        assert served(server(state)) == ["judge"]
        with pytest.raises(UnavailableError) as caught:
            ask(server(state), [body("a")])
    assert state.keys == ["Bearer sk-secret"] * 2
    assert "set OPENAI_API_KEY" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_key_that_would_break_a_header_is_refused_without_being_told(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk\r\nEvil: 1")
    with ChatServer().running() as state, pytest.raises(UnavailableError, match="what no key does") as caught:
        ask(server(state), [body("a")])
    assert "Evil" not in str(caught.value)
    assert state.requests == []


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(raw=b"<html>", kind="text/html"), "answers 200 with '<html>'.*no server of OpenAI"),
        (Reply(raw=b'{"data": [3]}'), "no server of OpenAI"),
        (Reply(status=401, raw=b"who?"), "answers 401 with 'who\\?': set OPENAI_API_KEY"),
        (Reply(status=503), "not ready; try again"),
        (Reply(status=404), "ends in /v1"),
    ],
)
def test_a_server_without_a_list_of_models_is_named(reply, said):
    with ChatServer(models=reply).running() as state, pytest.raises(UnavailableError, match=said):
        served(server(state))
