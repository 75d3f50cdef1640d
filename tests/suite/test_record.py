"""Records: whole or absent, and readable for as long as there are readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bench import record
from bench.budget import spent
from reports.build import build


@pytest.fixture
def cell(tmp_path):
    folder = tmp_path / "suite" / "dance-s0-abc"
    folder.mkdir(parents=True)
    (tmp_path / "suite" / "suite.yaml").write_text("name: suite\n")
    (folder / "config.yaml").write_text(yaml.safe_dump({"hash": "abc"}))
    (folder / "result.json").write_text(json.dumps({"version": 1, "arm": "dance"}))
    return folder


def test_a_row_cut_short_is_no_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iterat')

    assert [row["iteration"] for row in record.read_rows(path)] == [0, 1]


def test_no_file_has_no_rows(tmp_path):
    assert list(record.read_rows(tmp_path / "metrics.jsonl")) == []


def test_rows_past_a_checkpoint_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iteration": 2}\n{"itera')

    record.cut_rows(path, 2)

    assert path.read_text() == '{"iteration": 0}\n{"iteration": 1}\n'


def test_a_result_counts_only_under_the_hash_of_its_configuration(cell):
    assert record.read_cell(cell).result is None

    (cell / "DONE").write_text("another\n")
    assert record.read_cell(cell).result is None

    (cell / "DONE").write_text("abc\n")
    result = record.read_cell(cell).result
    assert result is not None
    assert result["arm"] == "dance"


@pytest.mark.parametrize("version", [0, record.VERSION + 1, "1", None])
def test_a_result_of_an_unknown_version_is_refused(cell, version):
    (cell / "DONE").write_text("abc\n")
    (cell / "result.json").write_text(json.dumps({"version": version}))

    with pytest.raises(ValueError, match=f"record version {version}"):
        record.read_suite(cell.parent)


def test_every_version_so_far_is_read(cell):
    (cell / "DONE").write_text("abc\n")
    for version in range(1, record.VERSION + 1):
        (cell / "result.json").write_text(json.dumps({"version": version}))
        assert record.read_cell(cell).result == {"version": version}


def test_a_folder_without_suite_yaml_is_no_suite(tmp_path):
    with pytest.raises(ValueError, match=r"no suite\.yaml"):
        record.read_suite(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    record.write_json(path, {"a": 1})

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        record.write_json(path, {"a": 2})

    assert json.loads(path.read_text()) == {"a": 1}


def test_a_cell_without_its_result_is_not_done(tmp_path):
    (tmp_path / "DONE").write_text("abc\n")
    assert not record.is_done(tmp_path, "abc")
    (tmp_path / "result.json").write_text("{}")
    assert record.is_done(tmp_path, "abc")


def test_records_of_the_first_version_are_read_and_reported(tmp_path):
    """tests/suite/records/v1 was written by version 0.1.0, and must load for ever."""
    first = record.read_suite(Path(__file__).parent / "records" / "v1")
    assert [cell.config["arm"] for cell in first.cells] == ["branch", "dance"]
    results = [cell.result for cell in first.cells]
    assert all(result is not None and result["version"] == 1 for result in results)
    assert [len(cell.rows) for cell in first.cells] == [2, 2]
    built = build(Path(__file__).parent / "records" / "v1", tmp_path)
    assert any("dance" in line and "9.0625" in line for line in built.lines)


def test_a_row_of_the_first_version_counts_its_calls():
    rows = list(record.read_rows(next((Path(__file__).parent / "records" / "v1").glob("dance-*")) / "metrics.jsonl"))
    assert spent(rows, "calls") == 2 * (290 + 3 * 98)
