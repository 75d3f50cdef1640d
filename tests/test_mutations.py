"""Errors that matter turn a test red; `python tests/mutations.py` tries them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import BY_NAME, MUTATIONS, ROOT, Mutation, copied, killers, main, mutated

MATTER_MOST = (
    "loss: the advantage's sign is flipped",
    "loss: the clip is dropped",
    "noise: siblings share no draw",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("tree"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MATTER_MOST)
def test_an_error_that_matters_turns_its_tests_red(name, tree):
    mutation = BY_NAME[name]
    assert {test.partition("[")[0] for test in killers(mutation, tree)} == set(mutation.tests)
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
