"""`python -m bench.run` as a person runs it: interrupted, taken up again, reported, and its models used elsewhere."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny import arguments

from bench.record import SuiteRecord, read_suite

pytestmark = pytest.mark.slow
ARMS = ("dance", "mix", "branch")


class Finished(NamedTuple):
    folder: Path
    """The working directory."""
    interrupted: subprocess.CompletedProcess[str]
    held: list[str]
    """Locks that were held after the interrupt."""
    done: set[str]
    """Cells that were done by then."""
    resumed: subprocess.CompletedProcess[str]

    @property
    def suite(self) -> SuiteRecord:
        return read_suite(self.folder / "runs" / "tiny")


@pytest.fixture(scope="module")
def finished(random_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("work")
    words = arguments(random_flux, ",".join(ARMS), words=["--jobs", "1"])
    command = [sys.executable, "-m", "bench.run", *words]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )
    until_a_row(folder, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    interrupted = subprocess.CompletedProcess(command, process.returncode, out, err)
    held = [str(path) for path in folder.rglob(".lock") if not free(path)]
    done = {path.parent.name for path in folder.rglob("DONE")}
    resumed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Finished(folder, interrupted, held, done, resumed)


def hear_interrupts() -> None:
    """Undo what a shell does to background jobs: they inherit SIGINT as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until_a_row(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in folder.rglob("metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_an_interrupt_is_status_130_and_leaves_no_worker(finished):
    assert finished.interrupted.returncode == 130
    assert finished.interrupted.stderr == "bench: interrupted; the same command goes on from here\n"
    assert finished.held == []
    assert len(finished.done) < len(ARMS)


def test_the_same_command_finishes_what_is_missing(finished):
    assert (finished.resumed.returncode, finished.resumed.stderr) == (0, "")
    missing = len(ARMS) - len(finished.done)
    assert f"{missing} of {len(ARMS)} cells to run, 1 at a time" in finished.resumed.stdout


def test_every_cell_is_whole(finished):
    cells = finished.suite.cells
    assert sorted(cell.config["arm"] for cell in cells) == sorted(ARMS)
    for cell in cells:
        assert cell.result is not None
        assert [row["iteration"] for row in cell.rows] == [0, 1, 2, 3, 4]
        assert set(cell.environment) >= {"python", "packages", "commit"}
        shown = {folder.name: len(list(folder.iterdir())) for folder in (cell.folder / "samples").iterdir()}
        assert shown == {"000002": 3, "000004": 3, "000005": 3}


def test_seconds_by_phase_are_an_iteration(finished):
    for cell in finished.suite.cells:
        for row in cell.rows:
            assert set(row["seconds"]) == {"rollout", "score", "credit", "update", "other"}
            assert all(value >= 0 for value in row["seconds"].values())


def test_calls_that_ran_are_those_that_were_planned(finished):
    for cell in finished.suite.cells:
        for row in cell.rows:
            assert row["calls"]["rollout"] == row["nfe"]["rollout"]["calls"] * row["samples"]
            assert row["calls"]["update"] == row["nfe"]["update"]["calls"] * row["samples"]


def test_the_report_has_every_arm(finished):
    lines = finished.resumed.stdout.splitlines()
    page = finished.folder / "reports" / "tiny" / "index.html"
    assert lines[-1] == f"report: {page.relative_to(finished.folder)}"
    text = page.read_text()
    for arm in ARMS:
        assert any(line.startswith(arm) for line in lines)
        assert arm in text


def test_nothing_is_written_outside_runs_and_reports(finished):
    assert sorted(path.name for path in finished.folder.iterdir()) == ["reports", "runs"]


DIFFUSERS_ALONE = """
import sys
import torch
from diffusers import FluxPipeline

trained, base = (FluxPipeline.from_pretrained(folder) for folder in sys.argv[1:])
moved = [not torch.equal(a, b) for a, b in zip(trained.transformer.parameters(), base.transformer.parameters())]
images = trained(
    "a red circle", height=32, width=32, num_inference_steps=2, max_sequence_length=12, output_type="pt"
).images
assert images.shape == (1, 3, 32, 32) and images.isfinite().all()
ours = {name.split(".")[0] for name in sys.modules} & {"bench", "algorithms", "rewards", "eval", "reports"}
print(any(moved), sorted(ours))
"""


def test_plain_diffusers_code_loads_and_samples_the_trained_model(finished, random_flux, tmp_path):
    trained = finished.suite.cells[0].folder / "pipeline"
    command = [sys.executable, "-c", DIFFUSERS_ALONE, str(trained), str(random_flux)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert process.returncode == 0, process.stderr
    assert process.stdout.split(maxsplit=1) == ["True", "[]\n"]
