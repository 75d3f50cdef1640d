"""A run whose scorer is on a server: the records of one that scored itself, also if the server died in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import servers
import yaml
from tiny import Zygote, arguments, facts, job, written

from bench.contract import UnavailableError
from bench.run import concluded
from bench.suite import Suite, failures
from rewards.shapes import Soft

pytestmark = pytest.mark.slow

LONG = {"iterations": 12, "checkpoint_every": 50}
"""Iterations during which a server can be killed, without a checkpoint but that of the pause."""
ANSWERS = 3
"""Rows after which it is."""


def suite_of(model: Path, url: str, out: Path, algos: str = "dance", **changes: Any) -> Suite:
    scorer = f"remote({url},patience=0.2)" if url else "soft"
    return written(arguments(model, algos, scorer, changes=LONG | {"eval_rewards": "[graded]"} | changes), out)


def rows(suite: Suite, cell: int = 0) -> int:
    file = suite.folder / suite.cells[cell].folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def when(so: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    """Do something in the background, as soon as something is so."""

    def watch() -> None:
        until = time.monotonic() + 120
        while not so() and time.monotonic() < until:
            time.sleep(0.002)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def local(random_flux: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A run of soft itself, that nothing interrupts."""
    suite = suite_of(random_flux, "", tmp_path_factory.mktemp("local"))
    assert zygote.run(job(suite)) == [[0]]
    return suite


@pytest.fixture(scope="module")
def paused(random_flux: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, str]:
    """A run whose server, a real one, was killed in the middle; and the address where it was."""
    with servers.process("soft") as (server, url):
        suite = suite_of(random_flux, url, tmp_path_factory.mktemp("paused"))
        thread = when(lambda: rows(suite) >= ANSWERS, server.kill)
        assert zygote.run(job(suite)) == [[1]]
        thread.join()
    return suite, url


def test_a_run_whose_server_dies_is_paused_and_says_how_to_go_on(paused, capsys):
    suite, url = paused
    assert ANSWERS <= rows(suite) < LONG["iterations"]
    said = failures(suite)["dance seed 0"]
    assert said.startswith(f"paused: soft of {url} does not answer (no connection: Connection refused)")
    assert said.endswith("start it again with `bench serve 'soft'`; the same command goes on")
    assert concluded(suite) == 1
    assert f"bench: dance seed 0 {said}\n" in capsys.readouterr().err
    folder = suite.folder / suite.cells[0].folder
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"{rows(suite):06d}.pt"]


def test_on_another_port_it_goes_on_to_the_records_of_an_uninterrupted_local_run(paused, local, random_flux, zygote):
    suite, before = paused
    with servers.process("soft") as (_, url):
        assert url != before
        again = suite_of(random_flux, url, suite.folder.parent)
        assert again.cells[0].hash == suite.cells[0].hash == local.cells[0].hash
        assert zygote.run(job(again)) == [[0]]
    assert facts(again) == facts(local)
    config = yaml.safe_load((again.folder / again.cells[0].folder / "config.yaml").read_text())
    assert config["scorers"] == {"soft": f"remote({url},patience=0.2)"}


class Mortal(Soft):
    """Is not there after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = 0
        self.most = calls

    def __call__(self, images, prompts, group):
        self.calls += 1
        if self.calls > self.most:
            raise UnavailableError("its machine is down")
        return super().__call__(images, prompts, group)


SHORT = {"iterations": 2, "eval_rewards": "[]", "prompts_per_iteration": 2}
BASE, TRAINING, ALL = 2, 4, 5
"""Calls of the base's evaluation and its reference, then of two iterations, then of the held-out evaluation."""


def served(reward: Soft, model: Path, out: Path, zygote: Zygote, algos: str = "dance", **how: Any) -> Suite:
    """Run a suite whose scorer is on a server, and is called once a request."""
    with servers.serving(reward, max_bytes=1 << 24, alone=True) as server:
        suite = suite_of(model, server.url, out, algos, **SHORT)
        codes = zygote.run(job(suite, **how))
    assert {code for process in codes for code in process} == {int(bool(suite.missing()))}
    return suite


@pytest.fixture(scope="module")
def whole(random_flux: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Suite]:
    """Runs whose server stays, by the number of their processes."""
    folder = tmp_path_factory.mktemp("whole")
    return {count: served(Soft(), random_flux, folder / str(count), zygote, processes=count) for count in (1, 2)}


def errors(suite: Suite) -> list[str]:
    files = [suite.folder / cell.folder / "error.txt" for cell in suite.cells]
    return [file.read_text().splitlines()[-1] for file in files]


def test_a_whole_run_asks_as_often_as_the_next_tests_think(random_flux, tmp_path, zygote):
    reward = Mortal(1000)
    assert served(reward, random_flux, tmp_path, zygote).missing() == []
    assert reward.calls == ALL


@pytest.mark.parametrize(("calls", "left"), [(0, 0), (BASE - 1, 0), (BASE, 0), (TRAINING - 1, 1), (TRAINING, 2)])
def test_a_server_that_dies_in_any_phase_pauses_the_cell_and_nothing_is_made_up(
    random_flux, tmp_path, zygote, whole, calls: int, left: int
):
    suite = served(Mortal(calls), random_flux, tmp_path, zygote)
    assert rows(suite) == left
    assert errors(suite)[0].startswith("paused: soft of http://127.0.0.1:")
    assert "(status 503: its machine is down)" in errors(suite)[0]
    assert facts(served(Soft(), random_flux, tmp_path, zygote)) == facts(whole[1])


def test_every_cell_of_a_dead_server_is_paused(random_flux, tmp_path, zygote):
    with servers.serving(Mortal(0), max_bytes=1 << 24) as server:
        suite = suite_of(random_flux, server.url, tmp_path, "dance,mix", **SHORT)
        assert zygote.run(job(suite)) == [[2]]
    assert all(text.startswith("paused: ") for text in errors(suite))


def test_a_cell_whose_server_is_dead_before_it_begins_is_paused_too(random_flux, tmp_path, zygote):
    with servers.serving(Soft()) as server:
        suite = suite_of(random_flux, server.url, tmp_path, **SHORT)
    assert zygote.run(job(suite)) == [[1]]
    assert errors(suite)[0].startswith("paused: ")
    assert "start it with `bench serve SCORER`; the same command goes on" in errors(suite)[0]


def test_a_server_of_other_weights_is_no_way_to_go_on(random_flux, tmp_path, zygote):
    suite = served(Mortal(TRAINING - 1), random_flux, tmp_path, zygote)

    class Newer(Soft):
        info = replace(Soft.info, revision="2")

    with servers.serving(Newer(), max_bytes=1 << 24) as server:
        config = suite.folder / suite.cells[0].folder / "config.yaml"
        record = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump(record | {"scorers": {"soft": f"remote({server.url})"}}))
        assert zygote.run(job(suite)) == [[1]]
        assert f"remote({server.url}) serves soft@2 now, and this run began with soft@1" in errors(suite)[0]
        assert suite_of(random_flux, server.url, tmp_path / "other", **SHORT).cells[0].hash != suite.cells[0].hash
    assert rows(suite) == 1


@pytest.mark.parametrize("calls", [1, 5, 9])
def test_two_processes_stop_together_and_go_on_together(random_flux, tmp_path, zygote, whole, calls: int):
    suite = served(Mortal(calls), random_flux, tmp_path, zygote, processes=2)
    assert errors(suite)[0].startswith("paused: soft of http://127.0.0.1:")
    assert facts(served(Soft(), random_flux, tmp_path, zygote, processes=2)) == facts(whole[2])
