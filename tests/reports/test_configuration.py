import csv
import io
import json

import pytest
from synthetic_suite import BASE, BRANCH, DANCE, MIX, SHARED, write_cell, write_suite

from bench.record import read_suite, write_json
from reports.arms import arms
from reports.build import build
from reports.configuration import (
    cards,
    difference_csv,
    difference_grid,
    difference_markdown,
    environment_grid,
    prompt_lines,
)


def two_arms(tmp_path):
    suite = write_suite(tmp_path / "demo")
    write_cell(suite, "dance", 0)
    write_cell(suite, "mix", 0, algo="mix", algorithm=MIX)
    return arms(read_suite(suite))


def texts(grid):
    return [[cell.text for cell in row] for row in grid.rows]


def test_only_shared_keys_that_arms_ran_differently_are_shown(tmp_path):
    table = difference_grid(two_arms(tmp_path))
    assert [column.title for column in table.columns] == ["shared key", "dance", "mix"]
    assert texts(table) == [["kernel", "dance_sde", "flow_sde"], ["eta", "1.0", "0.7"]]


def test_equal_arms_have_no_difference(tmp_path):
    suite = write_suite(tmp_path / "demo")
    write_cell(suite, "dance", 0)
    write_cell(suite, "branch", 0, algo="branch", algorithm=BRANCH)
    found = arms(read_suite(suite))
    assert difference_grid(found).rows == ()
    assert "None: all arms ran the same shared configuration." in difference_markdown(found)


def test_each_arm_names_its_paper_settings_and_deviations(tmp_path):
    found = two_arms(tmp_path)
    card = cards(found)[0]
    assert (card.paper, card.deviations, card.owns) == ("DanceGRPO, arXiv 2505.07818", ("dance deviates",), ("eta",))
    assert [row[0] for row in texts(card.settings)] == list(DANCE)
    text = difference_markdown(found)
    assert "## `mix`" in text
    assert "- mix deviates" in text


def test_the_csv_has_every_setting_of_every_arm(tmp_path):
    rows = list(csv.DictReader(io.StringIO(difference_csv(two_arms(tmp_path)))))
    by_key = {(row["section"], row["key"]): row for row in rows}
    assert by_key["effective", "eta"] == {
        "section": "effective",
        "key": "eta",
        "differs": "True",
        "dance": "1.0",
        "mix": "0.7",
    }
    assert by_key["effective", "lr"]["differs"] == "False"
    assert (by_key["algorithm", "tf"]["dance"], by_key["algorithm", "tf"]["mix"]) == ("1.0", "")


def test_environments_that_differ_are_counted(tmp_path):
    suite = write_suite(tmp_path / "demo")
    for seed, version in enumerate(("2.9", "2.9", "2.10")):
        environment = {"python": "3.11", "packages": {"torch": version}}
        write_cell(suite, "dance", seed, environment=environment)
    assert texts(environment_grid(arms(read_suite(suite)))) == [
        ["python", "3.11"],
        ["packages.torch", "2.9 (2 cells); 2.10 (1 cells)"],
    ]


def test_a_key_that_has_no_meaning_for_an_arm_is_no_difference(tmp_path):
    shared = {**SHARED, "roots": None}
    suite = write_suite(tmp_path / "demo", shared=shared)
    write_cell(suite, "dance", 0, shared=shared)
    write_cell(suite, "branch", 0, algo="branch", algorithm=BRANCH, shared=shared)
    assert texts(difference_grid(arms(read_suite(suite)))) == []


@pytest.mark.parametrize("counted", [True, False])
def test_what_was_read_of_the_prompts_is_on_the_page_where_records_have_it(counted, tmp_path):
    suite = write_suite(tmp_path / "demo")
    write_cell(suite, "dance", 0)
    path = suite / BASE / "result.json"
    counts = {"read": 21, "empty": 2, "duplicates": 1, "train": 7, "tune": 5, "heldout": 6}
    if counted:
        write_json(path, json.loads(path.read_text()) | {"prompt_counts": counts})
    said = "Prompts: 21 read, 2 empty, 1 duplicate; 7 to train on, 5 to tune by, 6 held out."

    assert prompt_lines(read_suite(suite)) == [said] * counted
    assert (said in build(suite, tmp_path / "reports").page.read_text()) is counted
