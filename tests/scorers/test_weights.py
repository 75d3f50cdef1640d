"""Where scorers' files are, and which contents they have."""

from __future__ import annotations

import os

import pytest

from bench.contract import HubFile, WebFile
from bench.registry import InputError
from bench.scorers import weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = HubFile(repository="a/b", file="sub/w.pt", size=3, licence="MIT", instead=("old.bin",))
MAYBE = HubFile(repository="a/b", file="tokenizer.json", size=0, licence="MIT", optional=True)
WEB = WebFile(address="https://example.com/h.pth", file="h.pth", size=0, licence="MIT", about=4_000)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ARBOR_CACHE", str(tmp_path / "arbor"))


@pytest.fixture
def snapshot(tmp_path):
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    (folder / "sub").mkdir(parents=True)
    return folder


def test_a_file_of_the_hub_is_in_its_cache(snapshot):
    (snapshot / "sub" / "w.pt").write_bytes(b"abc")
    assert weights.located("r", HUB) == snapshot / "sub" / "w.pt"


def test_another_name_does_as_well_where_the_first_is_not_there(snapshot):
    (snapshot / "old.bin").write_bytes(b"of another size")
    assert weights.located("r", HUB) == snapshot / "old.bin"
    (snapshot / "sub" / "w.pt").write_bytes(b"abc")
    assert weights.located("r", HUB) == snapshot / "sub" / "w.pt"


def test_a_file_of_the_web_is_in_the_programs_cache(tmp_path):
    (tmp_path / "arbor" / "weights").mkdir(parents=True)
    (tmp_path / "arbor" / "weights" / "h.pth").write_bytes(b"abc")
    assert weights.located("r", WEB) == weights.kept() / "h.pth" == tmp_path / "arbor" / "weights" / "h.pth"


def test_a_folder_has_files_under_their_own_names_and_of_any_size(tmp_path):
    for name in ("w.pt", "h.pth"):
        (tmp_path / name).write_bytes(b"tiny weights")
        assert weights.located("r", HUB if name == "w.pt" else WEB, str(tmp_path)) == tmp_path / name


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (HUB, r"'my reward' reads w\.pt \(3 B\) of a/b, which is not on this machine"),
        (WEB, r"'my reward' reads h\.pth \(about 4 kB\) of https://example\.com/h\.pth, which is not on this machine"),
    ],
)
def test_a_missing_file_is_told_with_size_origin_and_command(file, said):
    with pytest.raises(FileNotFoundError, match=said + ": `bench prepare --rewards 'my reward'` fetches it"):
        weights.located("my reward", file)


def test_a_file_that_a_folder_lacks_is_told_with_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"copy it to {tmp_path}, or leave `weights` out"):
        weights.located("r", HUB, str(tmp_path))


def test_a_file_that_was_cut_short_is_told_with_both_sizes(snapshot):
    (snapshot / "sub" / "w.pt").write_bytes(b"ab")
    with pytest.raises(FileNotFoundError, match=r"has 2 bytes and not 3: delete it, `bench prepare --rewards r`"):
        weights.located("r", HUB)


def test_files_are_checked_before_a_run_but_for_those_that_may_lack(snapshot, tmp_path):
    (snapshot / "sub" / "w.pt").write_bytes(b"abc")
    weights.check_files("r", (HUB, MAYBE), "")
    with pytest.raises(InputError, match=r"h\.pth"):
        weights.check_files("r", (HUB, MAYBE, WEB), "")
    with pytest.raises(InputError, match="is no folder"):
        weights.check_files("r", (HUB,), str(tmp_path / "none"))


def test_a_revision_is_of_the_rule_and_the_commit(snapshot):
    assert weights.revision((HUB, MAYBE), "", "2") == f"2+{COMMIT[:12]}"


def test_without_weights_a_revision_is_of_the_rule_alone():
    assert weights.revision((HUB, WEB), "", "2") == "2"


def test_a_revision_changes_with_the_contents_of_a_file_of_the_web(snapshot):
    bare = weights.revision((HUB, WEB), "", "2")
    weights.kept().mkdir(parents=True)
    found = []
    for at, content in enumerate((b"one", b"two")):
        (weights.kept() / "h.pth").write_bytes(content)
        os.utime(weights.kept() / "h.pth", ns=(at, at))
        found.append(weights.revision((HUB, WEB), "", "2"))
    assert all(text.startswith(f"2+{COMMIT[:12]}+") for text in found)
    assert len({bare, *found}) == 3


def test_a_revision_of_a_folder_is_of_the_contents_that_are_read(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "w.pt").write_bytes(b"abc")
    (two / "old.bin").write_bytes(b"not read")
    (two / "notes.txt").write_text("not read")
    assert weights.revision((HUB,), str(one), "2") == weights.revision((HUB,), str(two), "2")
    (two / "tokenizer.json").write_text("{}")
    assert weights.revision((HUB, MAYBE), str(one), "2") != weights.revision((HUB, MAYBE), str(two), "2")


@pytest.mark.parametrize(
    ("size", "text"), [(3, "3 B"), (4071, "4.07 kB"), (3_714_759, "3.71 MB"), (1_972_000_000, "1.97 GB")]
)
def test_sizes_are_spoken(size, text):
    assert weights.spoken(size) == text
