"""Where encoded prompts are kept is looked at before any work."""

from __future__ import annotations

RUN = ["--algos", "dance", "--preset", "smoke"]


def test_a_cache_that_cannot_be_written_is_wrong_input(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARBOR_CACHE", str(tmp_path / "file"))
    answer = call(RUN)
    assert answer.status == 2
    assert "encoded prompts cannot be kept" in answer.err
    assert "set ARBOR_CACHE" in answer.err
    assert not (tmp_path / "runs").exists()


def test_an_adapter_that_is_not_there_is_wrong_input(call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from bench.models.catalog import Family\nFAMILIES = {'MinePipeline': Family(adapter='no_such_module:Mine')}\n"
    )
    folder = tmp_path / "model"
    (folder / "net").mkdir(parents=True)
    (folder / "net" / "weights").write_text("1")
    (folder / "model_index.json").write_text('{"_class_name": "MinePipeline", "net": ["mine", "Net"]}')
    words = ["--plugin", "mine.py", "--model", "model", "--rewards", "soft", "--prompts", "world"]
    answer = call([*RUN, *words])
    assert answer.status == 2
    assert "no_such_module:Mine" in answer.err


def test_a_pinned_or_spelt_out_registered_model_keeps_its_defaults(call, tmp_path):
    from bench.models.source import known_as

    by_name = known_as("flux-dev")
    assert by_name is not None
    assert known_as("flux-dev@abc") == known_as("black-forest-labs/FLUX.1-dev@abc") == by_name
    assert known_as("someone/else") is None


def test_a_pinned_registered_model_is_the_hubs_repository_at_that_revision():
    from bench.models.hub import Repository
    from bench.models.source import repository_of

    name = "black-forest-labs/FLUX.1-dev"
    assert repository_of("flux-dev") == repository_of(name) == Repository(name=name)
    assert repository_of("flux-dev@abc") == repository_of(f"{name}@abc") == Repository(name=name, revision="abc")
    assert repository_of("tiny-flux") is None
