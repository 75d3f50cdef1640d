"""A worker that is killed, wherever it is, leaves a cell that ends as if nothing had happened."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from tiny import Zygote, facts, job

from bench.suite import Suite

pytestmark = pytest.mark.slow

ARM = """
import dataclasses
from algorithms.dance import Dance


class Hungry(Dance):
    \"\"\"Its noise grows with what it remembers, its loss looks at all policies: a lost one shows.\"\"\"

    def plan(self, ctx):
        return Dance.plan(dataclasses.replace(self, eta=0.5 + 0.1 * ctx.memory.get("seen", 0)), ctx)

    def remember(self, plan, outcomes, ctx):
        return {"seen": ctx.memory.get("seen", 0) + 1}

    @property
    def needs(self):
        return frozenset({"old", "reference", "ema"})

    def decay(self, ctx):
        return {"old": 0.5, "ema": 0.9}

    def loss(self, batch, velocity):
        apart = sum(((velocity["live"] - velocity[name]) ** 2).mean() for name in sorted(self.needs))
        return Dance.loss(self, batch, velocity) + apart


ARMS = {"hungry": Hungry(eta=0.5)}
"""
DEATHS = {  # where, at which call; iterations 2 and 4 of 5 leave a checkpoint, and so does the last
    "before-the-first-checkpoint": ("between_iterations", 2),
    "between-iterations": ("between_iterations", 4),
    "in-the-middle-of-a-row": ("in_row", 4),
    "in-the-first-checkpoint": ("in_checkpoint", 1),
    "in-a-later-checkpoint": ("in_checkpoint", 2),
    "while-the-pipeline-is-saved": ("in_pipeline", 1),
    "before-the-result": ("before_done", 1),
}
HARD = {"updates_per_iteration": 2, "ema": 0.9}
"""What has the most state: two optimiser steps an iteration, and a moving average."""


class Killed(NamedTuple):
    suites: dict[str, Suite]
    codes: dict[str, list[int]]
    """Of the killed worker and of the next."""
    left: dict[str, set[str]]
    """What the killed worker had left in the cell's folder."""


@pytest.fixture(scope="module")
def killed(make, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    plugin = tmp_path_factory.mktemp("plugin") / "hungry_arm.py"
    plugin.write_text(ARM)
    suites = {
        name: make("hungry", words=["--plugin", str(plugin)], **HARD) for name in ["uninterrupted", "again", *DEATHS]
    }
    jobs = [job(suites["uninterrupted"]), job(suites["again"])]
    for name, death in DEATHS.items():
        snapshot = str(suites[name].folder.parent / "left")
        jobs += [job(suites[name], die=death), job(suites[name], listing=snapshot)]
    codes = [code for codes in zygote.run(*jobs) for code in codes]
    return Killed(
        suites=suites,
        codes={name: codes[2 + 2 * at : 4 + 2 * at] for at, name in enumerate(DEATHS)},
        left={name: set((suites[name].folder.parent / "left").read_text().split()) for name in DEATHS},
    )


def test_the_same_seed_twice_is_the_same_record_bit_for_bit(killed: Killed):
    assert facts(killed.suites["uninterrupted"]) == facts(killed.suites["again"])


@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_cell_ends_as_an_uninterrupted_one(death: str, killed: Killed):
    assert killed.codes[death] == [-9, 0]
    assert "DONE" not in killed.left[death]
    assert facts(killed.suites[death]) == facts(killed.suites["uninterrupted"])


def test_the_workers_died_where_they_should(killed: Killed):
    assert "checkpoints/000002.pt" not in killed.left["before-the-first-checkpoint"]
    assert {"checkpoints/000002.pt"} <= killed.left["between-iterations"]
    assert {"checkpoints/000002.part"} <= killed.left["in-the-first-checkpoint"]
    assert {"checkpoints/000002.pt", "checkpoints/000004.part"} <= killed.left["in-a-later-checkpoint"]
    assert {"checkpoints/000005.pt", "pipeline.part/transformer/config.json"} <= killed.left[
        "while-the-pipeline-is-saved"
    ]
    assert "result.json" not in killed.left["before-the-result"]


def test_every_row_of_a_resumed_cell_is_there_once(killed: Killed):
    for suite in killed.suites.values():
        assert [row["iteration"] for row in facts(suite)["rows"]] == [0, 1, 2, 3, 4]


def test_memory_reaches_the_next_iteration_of_a_resumed_cell(killed: Killed):
    # With forgotten memory the noise of iterations 4 and 5 would be that of iterations 0 and 1.
    rewards = [row["reward"]["soft"] for row in facts(killed.suites["between-iterations"])["rows"]]
    assert len(set(rewards)) == 5


def test_no_temporary_file_is_left(killed: Killed):
    for suite in killed.suites.values():
        assert [str(path) for path in suite.folder.rglob("*.part")] == []


def test_a_killed_cell_with_optimiser_steps_of_its_own_ends_as_an_uninterrupted_one(make, zygote: Zygote):
    changes = {"branch-official.splits": "[0,1]", "ema": 0.9, "updates_per_iteration": 2}
    whole, killed = (make("branch-official", **changes) for _ in range(2))
    assert zygote.run(job(whole), job(killed, die=DEATHS["between-iterations"]), job(killed)) == [[0], [-9], [0]]
    assert facts(killed) == facts(whole)
    state = torch.load(whole.folder / whole.cells[0].folder / "checkpoints" / "000005.pt", weights_only=True)
    assert state["optimizer_steps"] == 5 * 3  # 36 edges of two trees, 12 a step
    assert all(0 < row["log_ratio_max"] for row in facts(whole)["rows"])
