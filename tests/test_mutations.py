"""Errors that matter turn a test red; `python tests/mutations.py` tries them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import BY_NAME, MUTATIONS, ROOT, Mutation, copied, main, mutated, unnoticed

MATTER_MOST = (
    "loss: the advantage's sign is flipped",
    "loss: the clip is dropped",
    "noise: siblings share no draw",
)
CLIP = BY_NAME["loss: the clip is dropped"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("tree"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MATTER_MOST)
def test_an_error_that_matters_turns_its_tests_red(name, tree):
    mutation = BY_NAME[name]
    assert unnoticed(mutation, tree) == []
    assert (tree / mutation.file).read_text() == (ROOT / mutation.file).read_text()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_error_has_one_place_and_tests_that_exist(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutated(mutation, text) != text
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_an_error_without_exactly_one_place_is_refused():
    mutation = Mutation(name="x", file="f.py", before="a", after="b", tests=())
    for text in ("", "aa"):
        with pytest.raises(ValueError, match="not once"):
            mutated(mutation, text)


def test_an_error_of_no_name_is_refused(capsys):
    assert main(["signs"]) == 2
    assert "no mutation 'signs'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "status", "says"),
    [
        ([], CLIP.tests, 0, "1 of 1 killed"),
        ([], CLIP.tests[:1], 1, f"SURVIVED: {CLIP.name}\n  {CLIP.tests[1]}\n"),
        ([], [], 1, "0 of 1 killed"),
        (CLIP.tests, [], 1, "red without any error"),
    ],
)
def test_the_status_is_1_unless_the_tests_were_green_and_then_red(before, after, status, says, monkeypatch, capsys):
    answers = iter([before, after])
    monkeypatch.setattr("mutations.COPIED", ("bench",))
    monkeypatch.setattr("mutations.red", lambda tree, tests: next(answers))
    assert main([CLIP.name]) == status
    assert says in capsys.readouterr().out
