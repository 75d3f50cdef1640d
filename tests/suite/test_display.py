"""What a person sees while cells run: files turned into a line or a table."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from bench import display
from bench.display import Watch, progress, table


def row(iteration: int) -> dict:
    seconds = {"rollout": 1.0, "score": 0.25, "credit": 0.0, "update": 0.5, "other": 0.25}
    return {"iteration": iteration, "reward_total": float(iteration), "seconds": seconds}


@pytest.fixture
def suite(make):
    return make("dance,mix")  # 5 iterations each


def grow(suite, rows: int, *, done: bool = False) -> None:
    folder = suite.folder / suite.cells[0].folder
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(rows)))
    if done:
        (folder / "result.json").write_text("{}")
        (folder / "DONE").write_text(suite.cells[0].hash)


def test_a_cell_waits_then_iterates_then_is_judged_then_done(suite):
    states = []
    for rows, done in ((0, False), (1, False), (4, False), (5, False), (5, True)):
        grow(suite, rows, done=done)
        states.append(progress(suite, suite.cells[0]).state)

    assert states == ["waiting", "1/5", "4/5", "judging", "done"]


def test_the_time_left_is_the_median_iteration_times_what_is_missing(suite):
    grow(suite, 3)
    assert progress(suite, suite.cells[0]).left == pytest.approx(2 * 2.0)


def test_the_reward_is_shown_first_and_last(suite):
    grow(suite, 5)
    assert progress(suite, suite.cells[0]).reward == "2.000 → 2.000"  # both means are of the same five
    assert progress(suite, suite.cells[1]).reward == ""


def test_without_a_terminal_there_is_a_line_where_something_moved_and_none_where_not(suite):
    console = Console(file=io.StringIO(), width=120)
    watch = Watch(suite=suite, console=console, live=None)
    for rows, done in ((0, False), (1, False), (1, False), (5, False), (5, True), (5, True)):
        grow(suite, rows, done=done)
        watch()

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert ["1/5" in lines[0], "judging" in lines[1], "done" in lines[2], len(lines)] == [True, True, True, 3]
    assert all("dance seed 0" in line for line in lines)


def test_the_table_has_a_row_a_cell(suite):
    grow(suite, 5, done=True)
    console = Console(file=io.StringIO(), width=120)
    console.print(table([progress(suite, cell) for cell in suite.cells], 12.0))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1 of 2 cells done, 12 s" in text
    assert "1.00  0.25  0.50" in text
    assert "waiting" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_calls_the_run_with_a_watch(suite, terminal):
    console, seen = Console(file=io.StringIO(), force_terminal=terminal, width=120), []
    display.watching(suite, console, seen.append)

    (watch,) = seen
    assert (watch.live is not None) is terminal
