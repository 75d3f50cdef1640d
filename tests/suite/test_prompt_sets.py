"""A suite of one's own prompts: what was read is on record, and what changes underneath it is seen."""

from __future__ import annotations

import csv
from pathlib import Path

from tiny import job

from bench import record
from bench.suite import failures
from reports.build import build

CATS = [f"a picture of {n} cats" for n in range(60)]
STRANGE = ['a "quoted", cat\non two lines', "قطة حمراء", "👩‍🚀 \x1b[31m <b>& ]]>", "very " * 2000 + "long"]


def table(path: Path, prompts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([prompt] for prompt in prompts)])
    return path


def test_a_suite_of_strange_prompts_runs_and_says_what_was_read(make, zygote, tmp_path):
    for name, items in (("train", [*CATS, CATS[0], ""]), ("test", STRANGE)):
        table(tmp_path / f"{name}.csv", items)
    words = ["--prompts", str(tmp_path)]
    suite = make(rewards="random", words=words, eval_rewards="[random]", eval_prompts=4, iterations=2)
    assert zygote.run(job(suite)) == [[0]]

    found = record.read_suite(suite.folder)
    (base,), (cell,) = found.bases.values(), found.cells
    assert cell.result is not None
    assert base["prompts"] == [prompt.strip() for prompt in STRANGE]
    counts = base.get("prompt_counts", {})
    assert cell.result.get("prompt_counts") == counts
    train = counts.pop("train")
    assert counts == {"read": 66, "empty": 1, "duplicates": 1, "tune": 60 - train, "heldout": 4}
    page = build(suite.folder, tmp_path / "reports").page.read_text()
    said = f"{train} to train on, {60 - train} to tune by, 4 held out."
    assert f"Prompts: 66 read, 1 empty, 1 duplicate; {said}" in page


def test_a_set_that_changed_since_its_suite_was_begun_is_not_trained_on(make, zygote, tmp_path):
    file = table(tmp_path / "a.csv", CATS)
    suite = make(words=["--prompts", str(file)])
    table(file, [*CATS, "a dog"])

    assert zygote.run(job(suite)) == [[1]]

    (said,) = failures(suite).values()
    assert "a.csv has changed since this suite was begun" in said
    assert "restore it" in said
