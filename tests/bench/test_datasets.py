"""A prompt set is a file, a folder or a dataset of the hub; what is its train and its test split is told by names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from hub_server import STRANGER, TOKEN, HubServer, commit_of
from pyarrow import parquet

from bench.data import load_prompts
from bench.datasets import chosen, hub_set, located, pinned, split_of
from bench.registry import InputError

TRAIN, TEST = [f"a picture of {n} cats" for n in range(60)], [f"a picture of {n} dogs" for n in range(5)]
SET = "hub:ymhao/HPDv2"


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train.json", "test.json"], ["train.json"], ["test.json"]),
        (["a.json"], ["a.json"], []),
        (["train.csv", "validation.csv", "notes.csv"], ["train.csv"], []),
        (["notes.csv", "test.csv"], ["test.csv"], []),
        (["test_metadata.jsonl", "train_metadata.jsonl"], ["train_metadata.jsonl"], ["test_metadata.jsonl"]),
        (
            ["data/test-00000-of-00001.parquet", *(f"data/train-0000{n}-of-00002.parquet" for n in range(2))],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/test-00000-of-00001.parquet"],
        ),
        (["default/Train/0000.parquet", "default/Test/0000.parquet"], *(["default/T" + n] for n in ("rain", "est"))),
        (["test/train.json", "trainer.json", "latest.json"], ["test/train.json"], []),
    ],
)
def test_splits_are_told_by_words_in_names(names, train, test):
    found = chosen(names, "a set", "FILE")
    assert [n.removesuffix("/0000.parquet") for n in found.train] == train
    assert [n.removesuffix("/0000.parquet") for n in found.test] == test


def test_words_inside_words_name_no_split():
    assert [split_of(n) for n in ("trainer.json", "latest.csv", "pretrain.csv", "train2.csv")] == [None] * 4
    assert [split_of(n) for n in ("TRAIN.csv", "my train.csv", "x-test.csv")] == ["train", "train", "test"]
    assert [split_of(n) for n in ("test/train.json", "train/test/0000.csv")] == ["train", "test"]


@pytest.mark.parametrize(
    "names", [["a.json", "b.json"], ["train.json", "train.csv"], ["en/train.csv", "de/train.csv", "test.csv"]]
)
def test_a_set_that_may_be_several_is_refused_with_their_names(names):
    with pytest.raises(
        InputError, match="a set has several files that may be meant; name one, as in x:FILE: "
    ) as error:
        chosen(names, "a set", "x:FILE")
    assert names[0] in str(error.value)


def test_a_set_without_files_is_refused():
    with pytest.raises(InputError, match="no file of prompts; wanted are a train and a test file"):
        chosen([], "a set", "FILE")


def folder(path: Path, **files: object) -> Path:
    path.mkdir(parents=True)
    for name, items in files.items():
        (path / f"{name}.json").write_text(json.dumps(items))
    return path


def hpd(path: Path, test: list[str] = TEST) -> Path:
    """Write a dataset laid out as HPDv2 is."""
    pairs = [{"prompt": p, "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0]} for p in TRAIN + TRAIN[:9]]
    ranks = [{"prompt": p, "image_path": ["1.jpg", "2.jpg"], "rank": [1, 2], "raw_annotations": [[1]]} for p in test]
    made = folder(path, train=pairs, test=ranks)
    (made / "README.md").write_text("what it is")
    (made / "train.tar.gz").write_bytes(b"")
    return made


def test_a_folder_is_read_as_its_splits(tmp_path):
    found = load_prompts(str(hpd(tmp_path / "hpd")))

    assert found.heldout == tuple(TEST)
    assert set(found.train) | set(found.tune) == set(TRAIN)
    assert (found.counts.read, found.counts.duplicates) == (74, 9)


def test_a_message_names_the_file_of_a_folder(tmp_path):
    made = folder(tmp_path / "set", train=TRAIN, test=[7])
    with pytest.raises(InputError, match=r"/set': test.json, item 1: the prompt is a number, 7"):
        load_prompts(str(made))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with HPDv2's layout, of which a branch has other prompts, a set of parquet files, and a gated one."""
    root = tmp_path_factory.mktemp("hub")
    main, other = hpd(root / "hpd"), hpd(root / "other", [*TEST, "a picture of a horse"])
    shards = root / "shards"
    (shards / "data").mkdir(parents=True)
    for name, part in (
        ("train-00000-of-00002", TRAIN[:30]),
        ("train-00001-of-00002", TRAIN[30:]),
        ("test-00000-of-00001", TEST),
    ):
        parquet.write_table(pyarrow.table({"caption": part}), shards / "data" / f"{name}.parquet")
    both = root / "languages"
    folder(both / "en", train=TRAIN, test=TEST)
    folder(both / "de", train=[f"ein Bild von {n} Katzen" for n in range(60)], test=["ein Hund"])
    with HubServer.hosting() as server:
        server.add("ymhao/HPDv2", main, kind="datasets", branches={"more": other})
        server.add("someone/shards", shards, kind="datasets")
        server.add("someone/languages", both, kind="datasets")
        server.add("someone/gated", main, kind="datasets", gated=True)
        yield server


def refused(source):
    """Return what is said of a set; it is one line."""
    with pytest.raises(InputError) as error:
        located(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_hub_dataset_is_what_the_same_folder_is(hub, tmp_path):
    with hub.pointed(tmp_path):
        found = load_prompts(SET)

    assert found == load_prompts(str(hpd(tmp_path / "hpd")))
    assert found.heldout == tuple(TEST)


def test_nothing_but_the_prompts_is_downloaded(hub, tmp_path):
    hub.downloads.clear()
    with hub.pointed(tmp_path):
        load_prompts(SET)
        load_prompts(SET)

    assert sorted(hub.downloads) == ["test.json", "train.json"]


def test_shards_of_parquet_files_are_one_split(hub, tmp_path):
    with hub.pointed(tmp_path):
        found = load_prompts("hub:someone/shards")

    assert found.heldout == tuple(TEST)
    assert set(found.train) | set(found.tune) == set(TRAIN)


def test_a_revision_and_a_file_are_taken_by_name(hub, tmp_path):
    with hub.pointed(tmp_path):
        assert load_prompts(f"{SET}@more").heldout[-1] == "a picture of a horse"
        alone = load_prompts(f"{SET}:train.json")
        german = load_prompts("hub:someone/languages:de/")

    assert {*alone.train, *alone.tune, *alone.heldout} == set(TRAIN)
    assert alone.heldout
    assert german.heldout == ("ein Hund",)


def test_a_pinned_name_is_of_a_commit_and_needs_no_hub(hub, tmp_path):
    with hub.pointed(tmp_path):
        name = pinned(SET)
        before = load_prompts(SET)
    commit = commit_of(hub.repositories["datasets", "ymhao/HPDv2"].branches["main"])
    assert name == f"{SET}@{commit}:train.json,test.json"
    hub.requests.clear()
    with hub.pointed(tmp_path):
        assert load_prompts(name) == before
        assert pinned(name) == name

    assert hub.requests == []
    assert pinned("prompts.txt") == "prompts.txt"


def test_offline_the_cache_serves(hub, tmp_path):
    with hub.pointed(tmp_path):
        before = load_prompts(SET)
    hub.requests.clear()
    with hub.pointed(tmp_path, offline=True):
        assert load_prompts(SET) == before

    assert hub.requests == []


def test_offline_a_part_of_a_set_is_not_taken_for_the_whole(hub, tmp_path):
    with hub.pointed(tmp_path):
        load_prompts(f"{SET}:train.json")
    with hub.pointed(tmp_path, offline=True):
        assert "the cache has train.json alone, which may not be all; name the file" in refused(SET)
        assert load_prompts(f"{SET}:train.json").counts.read == 69


def test_what_is_not_in_the_cache_is_named_with_what_brings_it(hub, tmp_path):
    with hub.pointed(tmp_path, offline=True):
        for source in (SET, f"{SET}:train.json"):
            assert refused(source).endswith(
                "HF_HUB_OFFLINE is set, and it is not in the cache; "
                "`hf download --repo-type dataset ymhao/HPDv2` brings it"
            )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hub:ymhao/HPDv3", "has no such dataset, or hides it; check the name"),
        ("hub:ymhao/HPDv3:train.json", "has no such dataset"),
        (f"{SET}@v9", "no such revision"),
        (f"{SET}@v9:train.json", "no such revision"),
        (f"{SET}:trian.json", "no such file; did you mean 'train.json'?"),
        (f"{SET}:de/", "no file of prompts"),
        ("hub:someone/languages", "several files that may be meant; name one, as in hub:someone/languages:FILE: de/tr"),
        ("hub:HPDv2", "hub:OWNER/NAME[@REVISION][:FILE] is wanted, as in hub:ymhao/HPDv2"),
        ("hub:", "is wanted"),
        (f"{SET}:../../secret.json", "is wanted"),
        (f"{SET}:/etc/passwd", "is wanted"),
        ("hub:-a/b", "Repo id must use alphanumeric chars"),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_a_line(hub, source, said, tmp_path):
    with hub.pointed(tmp_path):
        message = refused(source)
    assert message.startswith(f"prompts={source!r}")
    assert said in message


def test_a_gated_dataset_says_how_to_be_let_in(hub, tmp_path):
    for token in (None, STRANGER):
        with hub.pointed(tmp_path, token=token):
            assert "is gated: accept its terms on the hub, then `hf auth login`" in refused("hub:someone/gated")
    with hub.pointed(tmp_path, token=TOKEN):
        assert load_prompts("hub:someone/gated").heldout == tuple(TEST)


def test_a_hub_that_is_not_there_is_named(hub, tmp_path, monkeypatch):
    with hub.pointed(tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        message = refused(SET)
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert "HF_HUB_OFFLINE=1" in message


def test_a_spec_is_read_part_by_part():
    found = hub_set("hub:o/n@refs/convert/parquet:a.json,b c.json")
    assert (found.repo, found.revision, found.names) == ("o/n", "refs/convert/parquet", ("a.json", "b c.json"))
    assert (hub_set("hub:o/n").revision, hub_set("hub:o/n").names) == (None, ())


def test_a_dry_run_of_a_hub_dataset_needs_no_torch_and_names_are_checked_before_a_download(hub, tmp_path):
    script = (
        "import sys; from bench.run import main; status = main(sys.argv[1:]);"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    words = [sys.executable, "-c", script, "--algos", "dance", "--prompts", SET, "--dry-run"]
    env = os.environ | hub.environment(tmp_path / "cache")
    hub.requests.clear()
    wrong = subprocess.run([*words, "--algos", "dence"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (wrong.returncode, hub.requests) == (2, [])
    right = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert right.returncode == 0, right.stderr
    assert "cells to run" in right.stdout
