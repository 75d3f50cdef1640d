"""Records: whole or absent, and readable for as long as there are readers."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import record
from bench.budget import spent
from bench.config import LATER, Shared, digest, identity
from bench.parse import replaced
from bench.writing import WriteError, writing
from reports.build import build

FIRST = Path(__file__).parent / "records" / "v1"
"""Written by version 0.1.0; it must load for ever."""


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

    says = "is damaged \\(it has no version" if version is None else f"record version {version}"
    with pytest.raises(ValueError, match=says):
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
    first = record.read_suite(FIRST)
    assert [cell.config["arm"] for cell in first.cells] == ["branch", "dance"]
    results = [cell.result for cell in first.cells]
    assert all(result is not None and result["version"] == 1 for result in results)
    assert [len(cell.rows) for cell in first.cells] == [2, 2]
    built = build(FIRST, tmp_path)
    assert any("dance" in line and "9.0625" in line for line in built.lines)


def test_a_row_of_the_first_version_counts_its_calls():
    rows = list(record.read_rows(next(FIRST.glob("dance-*")) / "metrics.jsonl"))
    assert spent(rows, "calls") == 2 * (290 + 3 * 98)


def test_a_shared_configuration_of_the_first_version_has_the_hash_it_had_then():
    suite = record.read_yaml(FIRST / "suite.yaml")
    assert digest(identity(replaced(Shared(), suite["shared"], "shared"))) == suite["shared_hash"]


def test_every_shared_key_that_the_first_version_had_not_is_known_to_be_later():
    assert {field.name for field in fields(Shared)} - record.read_yaml(FIRST / "suite.yaml")["shared"].keys() == LATER


def test_a_later_key_counts_where_it_is_not_at_its_default():
    assert identity(Shared(reward_timeout=600.0)) == identity(Shared())
    assert identity(Shared(reward_timeout=60.0))["reward_timeout"] == 60


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let a write beyond so many bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_row_that_finds_no_room_names_its_file_and_leaves_those_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record.append_row(path, row(0))

    with files_up_to(path.stat().st_size + 10), pytest.raises(WriteError) as caught:
        record.append_row(path, row(1))

    assert str(caught.value) == f"{path} cannot be written: File too large; once it can, the same command goes on"
    assert [found["iteration"] for found in record.read_rows(path)] == [0]
    record.cut_rows(path, 1)
    record.append_row(path, row(1))
    assert [found["iteration"] for found in record.read_rows(path)] == [0, 1]


def row(iteration: int) -> Any:
    return dict.fromkeys(record.Row.__annotations__, 0) | {"iteration": iteration}


@pytest.mark.parametrize(
    "said",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    ],
)
def test_whoever_writes_a_full_disk_is_a_full_disk(said, tmp_path):
    says = f"{tmp_path} cannot be written: {os.strerror(28)}"
    with pytest.raises(WriteError, match=says), writing(tmp_path):
        raise said


def test_an_error_that_is_none_of_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(ArithmeticError), writing(tmp_path):
        raise ArithmeticError("7")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("metrics.jsonl", '{"iteration": 0}\n{"itera\n', "line 2: "),
        ("metrics.jsonl", "\xff\n", "line 1: "),
        ("result.json", '{"version": 1, "arm', "Unterminated string"),
        ("result.json", "", "Expecting value"),
        ("result.json", "[]", "no mapping"),
        ("config.yaml", "hash: [", "expected"),
        ("config.yaml", "", "no mapping"),
    ],
)
def test_a_damaged_record_is_named_with_the_way_out(cell, file, text, says):
    (cell / "DONE").write_text("abc\n")
    (cell / file).write_text(text, encoding="latin-1")

    with pytest.raises(ValueError) as caught:
        record.read_suite(cell.parent)

    assert str(caught.value).startswith(f"{cell / file} is damaged (")
    assert says in str(caught.value)
    assert str(caught.value).endswith(f"; delete {cell} and run again")


def test_of_a_damaged_suite_file_or_base_not_all_is_to_be_deleted(cell):
    base = cell.parent / "base-123"
    base.mkdir()
    (base / "result.json").write_text("{")
    with pytest.raises(ValueError, match=f"delete {base}, and the DONE of a cell that is measured against it, and run"):
        record.read_suite(cell.parent)
    (base / "result.json").unlink()
    (cell.parent / "suite.yaml").write_text("{")
    with pytest.raises(ValueError, match=f"delete {cell.parent / 'suite.yaml'} and run again"):
        record.read_suite(cell.parent)


@pytest.mark.parametrize("file", ["suite.yaml", "dance-s0-abc/config.yaml"])
def test_a_configuration_of_an_unknown_version_is_refused(cell, file):
    (cell.parent / file).write_text("version: 2\nhash: abc\n")
    with pytest.raises(ValueError, match=f"{file} has version 2; this Arbor reads 1: upgrade it"):
        record.read_suite(cell.parent)


def test_a_folder_is_whole_or_absent(tmp_path: Path):
    def cut_short(part: Path) -> None:
        part.mkdir()
        (part / "000.png").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.write_folder(tmp_path / "000002", cut_short)
    assert not (tmp_path / "000002").exists()

    def complete(part: Path) -> None:
        part.mkdir()
        (part / "000.png").write_bytes(b"whole")

    record.write_folder(tmp_path / "000002", complete)
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]
    assert (tmp_path / "000002" / "000.png").read_bytes() == b"whole"


def test_a_finished_cell_that_lacks_rows_is_damaged(cell):
    (cell / "DONE").write_text("abc\n")
    (cell / "result.json").write_text(json.dumps({"version": record.VERSION, "iterations": 3}))
    (cell / "metrics.jsonl").write_text('{"iteration": 0}\n{"iter')

    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(1 rows of 3\); delete"):
        record.read_suite(cell.parent)


def test_a_configuration_that_is_gone_is_told(cell):
    (cell / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config\.yaml is damaged .*delete"):
        record.read_cell(cell)
