"""`bench report` on records of all ages and states, and what a run says of damaged ones before it computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import reports.build
from bench import record
from bench.arguments import make_suite, run_parser
from bench.lock import locked
from bench.suite import Suite, write
from reports.arms import arms

FIRST = Path(__file__).parents[1] / "suite" / "records" / "v1"
WORDS = ["--algos", "dance", "--model", "tiny-flux", "--preset", "smoke", "--suite", "mine"]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A copy of a suite of the first version."""
    return Path(shutil.copytree(FIRST, tmp_path / "runs" / "first"))


@pytest.fixture
def mine(call, tmp_path: Path) -> Suite:
    """A suite whose one cell is done."""
    suite = make_suite(run_parser().parse_args(WORDS))
    write(suite)
    folder = suite.folder / suite.cells[0].folder
    (folder / "result.json").write_text(json.dumps({"version": record.VERSION, "evaluation_failures": []}))
    (folder / "metrics.jsonl").write_text('{"iteration": 0, "failed": 0, "warnings": [], "failures": []}\n')
    (folder / "DONE").write_text(suite.cells[0].hash)
    return suite


def test_a_suite_of_the_first_version_is_reported(call, first, tmp_path):
    answer = call(["report", "first"])

    assert (answer.status, answer.err) == (0, "")
    assert answer.out.splitlines()[-1] == "report: reports/first/index.html"
    page = (tmp_path / "reports" / "first" / "index.html").read_text()
    assert "9.0625" in page
    assert "BranchGRPO" in page


@pytest.mark.parametrize("file", ["result.json", "config.yaml", "suite.yaml"])
def test_a_record_of_a_version_to_come_is_refused(file, call, first, tmp_path):
    path = next(first.rglob(file))
    value = yaml.safe_load(path.read_text()) | {"version": 99}
    path.write_text(json.dumps(value))

    answer = call(["report", "first"])

    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith(f"bench: {path.relative_to(tmp_path)} has ")
    assert "version 99; this Arbor reads 1" in answer.err
    assert answer.err.endswith(": upgrade it\n")
    assert not list((tmp_path / "reports").rglob("*.html"))


@pytest.mark.parametrize("file", ["result.json", "metrics.jsonl"])
def test_a_record_cut_short_is_named_in_a_line(file, call, first, tmp_path):
    path = next(first.glob(f"dance-*/{file}"))
    path.write_text(path.read_text()[:100] + "\n")

    answer = call(["report", "first"])

    assert answer.status == 2
    assert answer.err.startswith(f"bench: {path.relative_to(tmp_path)} is damaged (")
    assert answer.err.endswith(f"; delete {path.parent.relative_to(tmp_path)} and run again\n")
    assert answer.err.count("\n") == 1


def test_a_report_that_cannot_be_written_says_where(call, first, tmp_path):
    (tmp_path / "reports").write_text("not a folder")

    answer = call(["report", "first"])

    assert answer.status == 2
    assert answer.err == "bench: reports: File exists; the report goes to ./reports of this folder\n"


def test_two_reports_are_not_written_at_once(call, first, monkeypatch, tmp_path):
    build, held = reports.build.build, []

    def watched(folder, out):
        with locked(out, wait=False) as free:
            held.append(not free)
        return build(folder, out)

    monkeypatch.setattr(reports.build, "build", watched)

    assert call(["report", "first"]).status == 0
    assert held == [True]


@pytest.mark.parametrize("file", ["result.json", "metrics.jsonl"])
def test_a_run_beside_a_damaged_cell_stops_before_it_computes(file, call, mine: Suite, monkeypatch):
    path = mine.folder / mine.cells[0].folder / file
    path.write_text("{]\n")
    monkeypatch.setattr("bench.suite.start", None)  # whoever called it would see

    answer = call([*WORDS[:1], "dance,mix", *WORDS[2:]])

    assert answer.status == 2
    assert answer.err.startswith(f"bench: {path} is damaged (")
    assert answer.err.endswith(f"; delete {path.parent} and run again\n")


@pytest.mark.parametrize("text", ["", "{", "- a\n"])
def test_a_damaged_suite_file_is_named(text, call, mine: Suite):
    path = mine.folder / "suite.yaml"
    path.write_text(text)

    for words in (WORDS, [*WORDS, "--open"]):
        answer = call(words)
        assert answer.status == 2
        assert answer.err.startswith("bench: runs/mine/suite.yaml is damaged (")
        assert answer.err.endswith("; delete runs/mine/suite.yaml and run again\n")


def test_a_file_where_a_cell_should_be_is_named(call, mine: Suite):
    folder = mine.folder / mine.cells[0].folder
    shutil.rmtree(folder)
    folder.write_text("")

    answer = call(WORDS)

    assert answer.status == 2
    assert answer.err == f"bench: {folder} cannot be written: File exists; choose another --out\n"


def test_a_suite_begun_before_a_shared_key_was_there_goes_on(call, mine: Suite):
    path = mine.folder / "suite.yaml"
    value = yaml.safe_load(path.read_text())
    del value["shared"]["reward_timeout"]
    path.write_text(yaml.safe_dump(value))

    same, other = call([*WORDS, "--dry-run"]), call([*WORDS, "--dry-run", "--set", "reward_timeout=60"])

    assert same.status == 0
    assert "0 cells to run" in same.out
    assert other.status == 2
    assert "was run with reward_timeout=600.0, not 60.0;" in other.err


@pytest.mark.parametrize(("is_open", "labels"), [(False, 2), (True, 3)])
def test_seeds_from_before_and_after_a_key_are_one_arm_of_a_closed_suite(is_open, labels, first: Path):
    old = next(first.glob("dance-*"))
    new = Path(shutil.copytree(old, first / "dance-s1"))
    config = yaml.safe_load((new / "config.yaml").read_text())
    config |= {"seed": 1, "shared": config["shared"] | {"reward_timeout": 600.0}}
    config["effective"]["reward_timeout"] = 600.0
    (new / "config.yaml").write_text(yaml.safe_dump(config))
    suite = yaml.safe_load((first / "suite.yaml").read_text())
    (first / "suite.yaml").write_text(yaml.safe_dump(suite | {"open": is_open}))

    assert len(arms(record.read_suite(first))) == labels


def test_a_suite_is_written_by_one_driver_at_a_time(call, mine: Suite, monkeypatch):
    held, write_text = [], record.write_text

    def watched(path, text):
        with locked(mine.folder, wait=False) as free:
            held.append(not free)
        write_text(path, text)

    monkeypatch.setattr(record, "write_text", watched)
    write(make_suite(run_parser().parse_args([*WORDS[:1], "dance,mix", *WORDS[2:]])))
    assert held == [True, True]  # suite.yaml, and the configuration of the new cell
