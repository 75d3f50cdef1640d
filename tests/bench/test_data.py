"""Prompts are cut into disjoint sets by what they say alone, and every iteration sees its own."""

import csv
import json
from dataclasses import asdict

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from bench.data import load_prompts, of_iteration, split
from bench.noise import keyed
from bench.registry import InputError

CATS = [f"a picture of {n} cats" for n in range(60)]


def text(path, prompts):
    path.with_suffix(".txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path.with_suffix(".txt")


def jsonl(path, prompts):
    path.with_suffix(".jsonl").write_text("".join(json.dumps({"caption": prompt}) + "\n" for prompt in prompts))
    return path.with_suffix(".jsonl")


def json_list(path, prompts):
    path.with_suffix(".json").write_text(json.dumps([{"id": 1, "text": prompt} for prompt in prompts]))
    return path.with_suffix(".json")


def table(path, prompts):
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "prompt"), *(("1", prompt) for prompt in prompts)])
    return path.with_suffix(".csv")


def columns(path, prompts):
    parquet.write_table(
        pyarrow.table({"prompt": pyarrow.array(prompts, pyarrow.string())}), path.with_suffix(".parquet")
    )
    return path.with_suffix(".parquet")


FORMATS = (text, jsonl, json_list, table, columns)
LINES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12)
"""Whatever a text file can hold in a line."""


def sets(prompts):
    return tuple(map(frozenset, (prompts.train, prompts.tune, prompts.heldout)))


def test_text_files_are_cut_as_they_always_were(tmp_path):
    file = text(tmp_path / "a", CATS)
    with file.open("a", newline="") as more:
        more.write("one\u2028two\x0cthree\r\n")
    found = load_prompts(str(file))

    assert found.digest == "e2adc895ee"
    assert (len(found.train), len(found.tune), len(found.heldout)) == (51, 6, 6)


def test_the_embedded_worlds_prompts_are_what_they_always_were():
    found = load_prompts("world")

    assert found.digest == "52c71ab4fc"
    assert asdict(found.counts) == {
        "read": 192,
        "empty": 0,
        "duplicates": 0,
        "train": 48,
        "tune": 24,
        "heldout": 120,
    }


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINES, max_size=30), data=st.data())
def test_sets_are_a_partition_independent_of_order_repetition_and_format(lines, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    again = [*lines, *CATS, *data.draw(st.lists(st.sampled_from([*CATS, *lines]), max_size=9))]
    shuffled = data.draw(st.permutations(again))
    reference = load_prompts(str(text(folder / "reference", [*lines, *CATS])))

    assert frozenset().union(*sets(reference)) == {line.strip() for line in [*lines, *CATS]} - {""}
    for write in FORMATS:
        found = load_prompts(str(write(folder / "other", shuffled)))
        assert sets(found) == sets(reference)
        counts = found.counts
        assert sum(map(len, sets(found))) == counts.train + counts.tune + counts.heldout
        assert counts.read == len(again)
        assert counts.empty == sum(not line.strip() for line in again)
        assert counts.read == counts.empty + counts.duplicates + counts.train + counts.tune + counts.heldout


@settings(max_examples=40, deadline=None)
@given(train=st.lists(LINES, max_size=20), test=st.lists(LINES, max_size=20), data=st.data())
def test_a_test_split_is_held_out_and_no_prompt_of_it_is_trained_on(train, test, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    train = data.draw(st.permutations([*CATS, *train]))
    test = [*data.draw(st.lists(st.sampled_from(CATS), max_size=5)), *test, "a dog"]
    data.draw(st.sampled_from(FORMATS))(folder / "train", train)
    data.draw(st.sampled_from(FORMATS))(folder / "my-test", test)
    found = load_prompts(str(folder))

    held = {line.strip() for line in test} - {""}
    rest = {line.strip() for line in train} - {""} - held
    assert set(found.heldout) == held
    assert set(found.train) | set(found.tune) == rest
    assert not set(found.train) & set(found.tune)
    # Those to tune by are the ones that they are without a test split.
    (folder / "alone").mkdir()
    alone = load_prompts(str(text(folder / "alone" / "all", train)))
    assert set(found.tune) == set(alone.tune) - held


def test_a_prompt_of_both_splits_is_counted_as_a_duplicate(tmp_path):
    text(tmp_path / "train", [*CATS, CATS[0], ""])
    text(tmp_path / "test", ["a dog", CATS[1], "  "])
    counts = load_prompts(str(tmp_path)).counts

    assert (counts.read, counts.empty, counts.duplicates, counts.heldout) == (65, 2, 2, 2)
    assert counts.train + counts.tune == 59


def test_prompts_that_differ_in_nothing_but_space_around_them_are_one(tmp_path):
    counts = load_prompts(str(text(tmp_path / "a", [*CATS, f"  {CATS[0]}\t"]))).counts
    assert (counts.read, counts.duplicates) == (61, 1)


def test_lines_of_a_prompt_are_told_from_prompts(tmp_path):
    whole = [*CATS, "a cat\nand a dog"]
    one = load_prompts(str(table(tmp_path / "one", whole)))
    same = load_prompts(str(jsonl(tmp_path / "same", whole)))

    assert "a cat\nand a dog" in (*one.train, *one.tune, *one.heldout)
    assert one.digest == same.digest


def test_two_prompts_have_another_digest_than_one_of_their_lines(tmp_path):
    sets = split([*CATS, *(f"{first}\n{second}" for first in CATS for second in CATS)], None)
    train = [prompt for prompt in sets[0] if "\n" not in prompt]
    one = next(p for p in sets[0] if "\n" in p and set(p.split("\n")) <= set(train) and len(set(p.split("\n"))) == 2)
    two = one.split("\n")
    rest = [prompt for prompt in CATS if prompt not in two]
    apart = load_prompts(str(table(tmp_path / "apart", [*two, *rest])))
    joined = load_prompts(str(table(tmp_path / "joined", [one, *rest])))

    assert "\n".join(apart.train) == "\n".join(joined.train)
    assert apart.digest != joined.digest


@pytest.mark.parametrize(("count", "said"), [(0, "0 distinct prompts are"), (1, "1 distinct prompt is")])
def test_too_few_prompts_to_split_are_refused(count, said, tmp_path):
    with pytest.raises(InputError, match=f"a.txt': {said} too few to split; give 40 or more"):
        load_prompts(str(text(tmp_path / "a", CATS[:count])))


def test_splits_without_prompts_are_refused(tmp_path):
    text(tmp_path / "train", CATS)
    text(tmp_path / "test", ["", " "])
    with pytest.raises(InputError, match="its test split has no prompts"):
        load_prompts(str(tmp_path))
    text(tmp_path / "test", [*CATS, "a dog"])
    with pytest.raises(InputError, match="beside the test split's 0 distinct prompts are too few"):
        load_prompts(str(tmp_path))


def test_a_file_that_has_changed_is_read_again(tmp_path):
    file = text(tmp_path / "a", CATS)
    first = load_prompts(str(file))
    assert load_prompts(str(file)) is first

    text(tmp_path / "a", [*CATS, "a dog"])

    assert load_prompts(str(file)).counts.read == 61


def framed(folder, rows):
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "image"), *rows])
    return str(folder / "a.csv")


def frame(path, colour):
    Image.new("RGB", (4, 4), colour).save(path)
    return path.name


def test_images_are_absolute_and_by_prompt(tmp_path, monkeypatch):
    red = frame(tmp_path / "red.png", "red")
    monkeypatch.chdir(tmp_path)
    framed(tmp_path, [(prompt, red if prompt == CATS[7] else "") for prompt in CATS])

    assert load_prompts("a.csv", framed=True).images == {CATS[7]: str(tmp_path / "red.png")}


def test_the_digest_is_of_prompts_and_of_what_their_images_show(tmp_path):
    plain = load_prompts(str(text(tmp_path / "a", CATS)))
    red = frame(tmp_path / "red.png", "red")
    without = load_prompts(framed(tmp_path, [(prompt, "") for prompt in CATS]), framed=True)
    seven = load_prompts(framed(tmp_path, [(prompt, red if prompt == CATS[7] else "") for prompt in CATS]), framed=True)
    of_red = seven.digest
    eight = load_prompts(
        framed(tmp_path, [(prompt, red if prompt == CATS[8] else "") for prompt in CATS]), framed=True
    ).digest
    frame(tmp_path / "red.png", "blue")

    assert without.digest == plain.digest
    assert len({plain.digest, of_red, eight, seven.digest}) == 4


def test_an_image_may_be_elsewhere_under_another_name(tmp_path):
    red, again = frame(tmp_path / "red.png", "red"), frame(tmp_path / "again.png", "red")
    digests = {load_prompts(framed(tmp_path, [(p, image) for p in CATS])).digest for image in (red, again)}
    assert len(digests) == 1


def test_a_model_of_texts_alone_reads_no_column_of_images(tmp_path):
    rows = [(prompt, "https://example.org/gone.png") for prompt in CATS]
    assert load_prompts(framed(tmp_path, rows)).images == {}
    with pytest.raises(InputError, match="is not there"):
        load_prompts(framed(tmp_path, rows), framed=True)


def test_one_prompt_with_two_images_is_refused(tmp_path):
    red, blue = frame(tmp_path / "red.png", "red"), frame(tmp_path / "blue.png", "blue")
    rows = [(prompt, red) for prompt in CATS]
    same = load_prompts(framed(tmp_path, [*rows, (CATS[3], f"../{tmp_path.name}/red.png"), (CATS[4], "")]), framed=True)
    assert same.counts.duplicates == 2
    with pytest.raises(InputError, match=r"line 62: this prompt has another image, 'red.png'"):
        load_prompts(framed(tmp_path, [*rows, (CATS[3], blue)]), framed=True)


@settings(max_examples=50)
@given(size=st.integers(1, 30), seed=st.integers(0, 2**63 - 1), iteration=st.integers(0, 50), count=st.integers(1, 40))
def test_an_iterations_prompts_are_those_of_an_epochs_permutation(size, seed, iteration, count):
    expected = []
    for at in range(iteration * count, (iteration + 1) * count):
        epoch, place = divmod(at, size)
        expected.append(int(keyed(seed, "prompts", epoch).permutation(size)[place]))
    assert of_iteration(["a"] * size, seed, iteration, count) == expected


def test_every_epoch_sees_every_prompt_once():
    seen = [at for iteration in range(6) for at in of_iteration(CATS, 3, iteration, 20)]
    assert sorted(seen[:60]) == sorted(seen[60:]) == list(range(60))
    assert seen[:60] != seen[60:]


def test_an_epochs_order_is_drawn_once(monkeypatch):
    drawn, prompts = [], ["a"] * 97_001
    monkeypatch.setattr("bench.data.keyed", lambda *key: drawn.append(key) or keyed(*key))
    for iteration in range(20):
        of_iteration(prompts, 5, iteration, 32)
    assert drawn == [(5, "prompts", 0)]
