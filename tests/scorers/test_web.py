"""Files outside the hub are fetched whole, or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from web_server import Reply, WebServer

from bench.contract import WebFile
from bench.models.hub import MissingError
from bench.scorers import web
from bench.scorers.weights import kept

CONTENT = bytes(range(200))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ARBOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server():
    with WebServer.hosting() as made:
        made.replies["/head.pth"] = Reply(content=CONTENT)
        yield made


def head(server, path="/head.pth", size=200):
    return WebFile(address=f"{server.url}{path}", file="head.pth", size=size, licence="MIT")


def left():
    return sorted(path.name for path in kept().glob("*")) if kept().is_dir() else []


def test_another_file_of_the_same_size_is_not_kept(server):
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(MissingError, match="another file of the same size"):
        web.fetch(replace(head(server), size=len(CONTENT), sha256=right[::-1]))
    assert left() == []
    assert web.fetch(replace(head(server), size=len(CONTENT), sha256=right)).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), 0])
def test_a_file_is_kept_under_its_name(server, size):
    file = head(server, size=size)
    assert not web.is_here(file)
    path = web.fetch(file)
    assert path == kept() / "head.pth"
    assert path.read_bytes() == CONTENT
    assert web.is_here(file)
    assert left() == ["head.pth"]


def test_a_file_of_another_size_is_not_here_and_is_fetched_anew(server):
    kept().mkdir(parents=True)
    (kept() / "head.pth").write_bytes(b"cut")
    assert not web.is_here(head(server))
    assert web.fetch(head(server)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(content=CONTENT[:50]), "the server sent 50 bytes of 200"),
        (Reply(content=CONTENT * 2), "the server sent more than the 200 B"),
        (Reply(content=CONTENT[:50], length=200), "IncompleteRead|50 bytes of 200"),
        (Reply(content=b"\n<!DOCTYPE html><p>log in"), "a page of HTML in its place"),
        (Reply(content=b"<HTML>"), "a page of HTML in its place"),
        (Reply(content=CONTENT, kind="text/html; charset=utf-8"), "a page of HTML in its place"),
        (Reply(status=404), "the server answers 404"),
        (Reply(status=500), "the server answers 500"),
        (Reply(status=302, location="ftp://example.com/x"), "302|https is wanted"),
    ],
)
def test_what_is_not_the_file_is_refused_and_nothing_is_kept(server, reply, said):
    server.replies["/head.pth"] = reply
    with pytest.raises(MissingError, match=said) as told:
        web.fetch(head(server))
    assert "\n" not in str(told.value)
    assert f"run the command again, or copy the file to {kept() / 'head.pth'}" in str(told.value)
    assert left() == []


def test_a_gigabyte_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(web, "MOST", 1000)
    server.replies["/head.pth"] = Reply(content=bytes(5000), length=10**9)
    with pytest.raises(MissingError, match=r"more than the 1 kB"):
        web.fetch(head(server, size=0))


def test_a_server_that_goes_silent_is_given_up(server, monkeypatch):
    monkeypatch.setattr(web, "SECONDS", 0.2)
    server.replies["/head.pth"] = Reply(length=200, silent=True)
    with pytest.raises(MissingError, match="timed out"):
        web.fetch(head(server))
    assert left() == []


def test_a_server_that_is_not_there_is_said():
    with pytest.raises(MissingError, match="URLError"):
        web.fetch(WebFile(address="http://127.0.0.1:1/x", file="x", size=1, licence=""))


@pytest.mark.parametrize("address", ["http://example.com/x", "file:///etc/passwd", "head.pth"])
def test_an_address_that_is_not_https_is_not_asked(address):
    with pytest.raises(MissingError, match="https is wanted"):
        web.fetch(WebFile(address=address, file="x", size=1, licence=""))


def test_a_redirect_is_followed_to_an_address_that_would_be_asked(server, monkeypatch):
    monkeypatch.setattr(web, "LOOPBACK", ("127.0.0.1",))
    server.replies["/other"] = Reply(content=CONTENT)
    server.replies["/head.pth"] = Reply(status=302, location="/other")
    assert web.fetch(head(server)).read_bytes() == CONTENT
    server.requests.clear()
    elsewhere = server.url.replace("127.0.0.1", "localhost") + "/other"
    server.replies["/head.pth"] = Reply(status=302, location=elsewhere)
    with pytest.raises(MissingError, match="https is wanted"):
        web.fetch(head(server))
    assert server.requests == ["/head.pth"]


def test_offline_nothing_is_asked(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE is set"):
        web.fetch(head(server))
    assert server.requests == []


def test_a_file_that_cannot_be_written_leaves_nothing_behind(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(MissingError, match="cannot be had"):
        web.fetch(head(server))
