"""The driver: what it starts, what it says, how it ends. Workers are forks of the zygote, or stand-ins."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import Zygote, arguments, job

from bench import run, suite
from bench.config import cell_from_record
from bench.registry import load
from bench.suite import Machine, Suite, failures, finish, machine, remarks, start, write

PLUGIN = """
from algorithms.dance import Dance
from bench.contract import RewardInfo


class Lossy(Dance):
    def loss(self, batch, velocity):
        raise ArithmeticError("this loss is out of order")


class Dead:
    \"\"\"Raises at every image.\"\"\"

    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")

    def __call__(self, images, prompts, group):
        raise OSError("the judge is not at home")


ARMS, REWARDS = {"lossy": Lossy()}, {"dead": Dead}
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "plugin_that_fails.py").write_text(PLUGIN)
    return tmp_path / "plugin_that_fails.py"


@pytest.fixture
def main(zygote: Zygote, random_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`main("dance")` is `bench run` on the random pipeline, its worker a fork of the zygote."""
    monkeypatch.chdir(tmp_path)

    def started(made: Suite, *_: Any) -> list:
        zygote.run(job(made))
        return []

    monkeypatch.setattr(suite, "start", started)

    def called(algos: str, *words: str, rewards: str = "soft") -> int:
        return run.main(arguments(random_flux, algos, rewards, words, {"iterations": 1}))

    return called


def test_a_suite_ends_with_its_report_and_a_second_run_runs_nothing(main, monkeypatch, capsys, tmp_path):
    assert main("dance") == 0
    first = capsys.readouterr().out
    assert "1 of 1 cells to run" in first
    assert f"report: {Path('reports', 'tiny', 'index.html')}" in first
    assert (tmp_path / "reports" / "tiny" / "index.html").is_file()

    monkeypatch.setattr(suite, "start", None)  # whoever called it would see
    assert main("dance") == 0
    second = capsys.readouterr().out
    assert "cells to run" not in second
    assert second.splitlines()[-1] == first.splitlines()[-1]


def test_a_run_with_more_arms_runs_only_those(main, capsys):
    assert main("dance") == 0
    assert main("dance,mix") == 0
    assert "1 of 2 cells to run" in capsys.readouterr().out


def test_a_failed_cell_is_status_1_and_the_others_are_reported(main, plugin, capsys):
    assert main("lossy,dance", "--plugin", str(plugin)) == 1

    said = capsys.readouterr()
    assert said.err == "bench: lossy seed 0 failed: ArithmeticError: this loss is out of order\n"
    assert "report: " in said.out
    assert any(line.startswith("dance") for line in said.out.splitlines())


def test_a_suite_without_a_finished_cell_is_status_1_and_has_no_report(main, plugin, capsys, tmp_path):
    assert main("dance", "--plugin", str(plugin), rewards="dead") == 1

    said = capsys.readouterr()
    assert "the judge is not at home" in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "reports").exists()


def test_an_interrupt_is_status_130_and_names_the_way_on(main, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "start", interrupted)

    assert main("dance") == 130
    assert capsys.readouterr().err == "bench: interrupted; the same command goes on from here\n"


def test_a_worker_that_dies_without_a_word_is_a_failure(make):
    made = make("dance")

    (why,) = failures(made).values()

    assert "stopped without a word" in why
    assert str(made.folder) in why


def test_an_interrupt_stops_every_worker():
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    workers = [subprocess.Popen(sleep, start_new_session=True) for _ in range(2)]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(workers, interrupted)

    assert [worker.returncode for worker in workers] == [-signal.SIGTERM] * 2


def test_workers_are_one_a_gpu_or_one_a_core(monkeypatch):
    monkeypatch.setattr(suite.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert machine(None, "auto") == Machine(jobs=2, threads=4, gpus=("3", "5"))
    assert machine(None, "cpu") == Machine(jobs=8, threads=1, gpus=())
    assert machine(3, "cpu") == Machine(jobs=3, threads=2, gpus=())
    assert machine(100, "cpu") == Machine(jobs=100, threads=1, gpus=())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine(None, "auto").gpus == ()


def test_each_worker_has_its_gpu_and_begins_at_another_cell(make, monkeypatch):
    made, started = make("dance,mix,branch"), []

    class Recorded(subprocess.Popen):
        def __init__(self, command, *, env, **_):
            self.returncode, self._child_created = 0, False
            started.append((env.get("CUDA_VISIBLE_DEVICES"), env["OMP_NUM_THREADS"], command))

    monkeypatch.setattr(suite.subprocess, "Popen", Recorded)
    start(made, Machine(jobs=5, threads=2, gpus=("0", "1")), "auto")

    names = [cell.folder for cell in made.cells]
    assert [gpu for gpu, _, _ in started] == ["0", "1", "0"]  # no more workers than cells
    assert {threads for _, threads, _ in started} == {"2"}
    for index, (_, _, command) in enumerate(started):
        assert command[command.index("--cells") + 1 :] == names[index:] + names[:index]


def test_a_cell_reads_back_from_its_file_as_it_was(make):
    made = make("dance(tf=0.5),branch-mix,mix", words=["--seeds", "0,3"])
    for cell in made.cells:
        read = yaml.safe_load((made.folder / cell.folder / "config.yaml").read_text())
        assert cell_from_record(read, load("algorithms")) == cell


def test_a_done_cell_keeps_its_configuration_file(make):
    made = make("dance")
    folder = made.folder / made.cells[0].folder
    as_it_was = f"{(folder / 'config.yaml').read_text()}# kept\n"
    (folder / "config.yaml").write_text(as_it_was)
    (folder / "result.json").write_text('{"version": 2}')
    (folder / "DONE").write_text(made.cells[0].hash)

    write(made)

    assert (folder / "config.yaml").read_text() == as_it_was
    assert made.missing() == []


def test_failed_images_and_warnings_of_a_cell_are_remarked(make):
    made = make("dance")
    rows = ['{"failed": 2, "failures": ["soft: ValueError: too dark"], "warnings": ["drifts"]}\n'] * 2
    (made.folder / made.cells[0].folder / "metrics.jsonl").write_text("".join(rows))

    assert remarks(made) == {
        "dance seed 0": "drifts; 4 images could not be scored: soft: ValueError: too dark",
    }
