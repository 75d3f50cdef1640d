"""What goes wrong in the middle: the cell says what, nothing is lost, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Zygote, facts, job

from bench import suite as grid
from bench.suite import Suite, failures

ARMS = """
from algorithms.dance import Dance


def out_of_order(ctx, stage):
    if ctx.iteration == 1:  # later than any check before the run looks
        raise ArithmeticError(f"{stage} is out of order")


class Plans(Dance):
    def plan(self, ctx):
        out_of_order(ctx, "plan")
        return super().plan(ctx)


class Credits(Dance):
    def credit(self, plan, outcome, ctx):
        out_of_order(ctx, "credit")
        return super().credit(plan, outcome, ctx)


class Selects(Dance):
    def select(self, plan, outcome, advantage, ctx):
        out_of_order(ctx, "select")
        return super().select(plan, outcome, advantage, ctx)


class Remembers(Dance):
    def remember(self, plan, outcomes, ctx):
        out_of_order(ctx, "remember")
        return super().remember(plan, outcomes, ctx)


class Decays(Dance):
    def decay(self, ctx):
        out_of_order(ctx, "decay")
        return super().decay(ctx)


ARMS = {"plan": Plans(), "credit": Credits(), "select": Selects(), "remember": Remembers(), "decay": Decays()}
"""
STAGES = ("plan", "credit", "select", "remember", "decay")
REWARDS = """
import time
import numpy as np
from bench.contract import RewardInfo


class Sleepy:
    \"\"\"Is too late with the call after the base's four and the first prompt's.\"\"\"

    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")
    calls = 0

    def __call__(self, images, prompts, group):
        self.calls += 1
        time.sleep(3 if self.calls == 6 else 0)
        return images.flatten(1).mean(1).numpy()


class Silent(Sleepy):
    \"\"\"Never answers.\"\"\"

    def __call__(self, images, prompts, group):
        time.sleep(600)


class Short(Sleepy):
    \"\"\"One score too few.\"\"\"

    def __call__(self, images, prompts, group):
        return np.zeros(len(images) - 1)


class Blank(Sleepy):
    \"\"\"NaN for the first image of a call.\"\"\"

    def __call__(self, images, prompts, group):
        value = images.flatten(1).mean(1).double().numpy()
        return np.where(np.arange(len(value)) == 0, np.nan, value)


REWARDS = {"sleepy": Sleepy, "silent": Silent, "short": Short, "blank": Blank}
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "arms_that_raise.py").write_text(ARMS)
    (folder / "rewards_of_all_sorts.py").write_text(REWARDS)
    return ["--plugin", str(folder / "arms_that_raise.py"), "--plugin", str(folder / "rewards_of_all_sorts.py")]


@pytest.fixture(scope="module")
def undisturbed(make, zygote: Zygote) -> Suite:
    suite = make()
    assert zygote.run(job(suite)) == [[0]]
    return suite


def cell(suite: Suite) -> Path:
    return suite.folder / suite.cells[0].folder


@pytest.mark.slow
def test_an_algorithm_that_raises_fails_its_cell_with_its_words_and_no_other(make, zygote: Zygote, plugins):
    suite = make(f"{','.join(STAGES)},dance", words=plugins, iterations=2)

    assert zygote.run(job(suite)) == [[len(STAGES)]]

    assert failures(suite) == {f"{stage} seed 0": f"ArithmeticError: {stage} is out of order" for stage in STAGES}
    assert facts(suite, len(STAGES))["result"]["arm"] == "dance"


def test_a_scorer_that_hangs_costs_its_images_and_not_the_run(make, zygote: Zygote, plugins):
    suite = make(rewards="sleepy", words=plugins, reward_timeout=2.0, micro_batch=4, eval_rewards="[soft]")

    assert zygote.run(job(suite)) == [[0]]

    rows = facts(suite)["rows"]
    assert sum(row["failed"] for row in rows) == 4  # a call: the images of one prompt
    assert [text for row in rows for text in row["failures"]] == ["sleepy: no answer in 2 s"]


def test_a_scorer_that_never_answers_fails_the_cell_with_its_name(make, zygote: Zygote, plugins):
    suite = make(rewards="silent", words=plugins, reward_timeout=0.5)

    assert zygote.run(job(suite)) == [[1]]

    assert failures(suite) == {"dance seed 0": "RuntimeError: no image could be scored: silent: no answer in 0.5 s"}


def test_a_scorer_of_the_wrong_length_is_named(make, zygote: Zygote, plugins):
    suite = make(rewards="short", words=plugins)

    assert zygote.run(job(suite)) == [[1]]

    (said,) = failures(suite).values()
    assert said == "ValueError: reward 'short' returned shape (5,) for 6 images: one score an image"


def test_a_score_that_is_no_number_is_counted(make, zygote: Zygote, plugins):
    suite = make(rewards="blank", words=plugins, micro_batch=4)

    assert zygote.run(job(suite)) == [[0]]

    assert [row["failed"] for row in facts(suite)["rows"]] == [2] * 5  # one of each prompt's images


@pytest.mark.parametrize("damage", ["nothing", "half", "a-bit"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(damage, make, zygote: Zygote, undisturbed: Suite):
    suite = make()
    assert zygote.run(job(suite)) == [[0]]
    (cell(suite) / "DONE").unlink()
    newest = cell(suite) / "checkpoints" / "000005.pt"
    whole = newest.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    newest.write_bytes({"nothing": b"", "half": whole[:middle], "a-bit": flipped}[damage])

    assert zygote.run(job(suite)) == [[1]]

    (said,) = failures(suite).values()
    assert f"{newest} cannot be read" in said
    assert said.endswith("delete it and the one before is used")
    newest.unlink()
    assert zygote.run(job(suite)) == [[0]]
    assert facts(suite) == facts(undisturbed)


def test_on_a_full_disk_the_cell_names_the_file_and_goes_on_once_there_is_room(make, zygote, undisturbed: Suite):
    suite = make()

    assert zygote.run(job(suite, largest=100_000)) == [[1]]

    (said,) = failures(suite).values()
    file = cell(suite) / "checkpoints" / "000002.part"
    assert said == f"WriteError: {file} cannot be written: File too large; once it can, the same command goes on"
    assert zygote.run(job(suite)) == [[0]]
    assert facts(suite) == facts(undisturbed)


def test_a_trained_model_that_finds_no_room_is_saved_by_the_next_run(make, zygote, undisturbed: Suite):
    suite = make()
    zygote.run(job(suite))
    (cell(suite) / "DONE").unlink()

    assert zygote.run(job(suite, largest=100_000)) == [[1]]

    (said,) = failures(suite).values()
    assert said.startswith(f"WriteError: {cell(suite) / 'pipeline.part'} cannot be written: File too large")
    assert zygote.run(job(suite)) == [[0]]
    assert facts(suite) == facts(undisturbed)


def test_where_not_even_the_error_can_be_written_the_driver_looks_at_the_disk(make, zygote, monkeypatch):
    suite = make("dance,mix")

    assert zygote.run(job(suite, largest=1)) == [[2]]  # it came to both cells, and died of neither

    usage = grid.shutil.disk_usage(suite.folder)
    monkeypatch.setattr(grid.shutil, "disk_usage", lambda _: usage._replace(free=0))
    for said in failures(suite).values():
        assert said == f"stopped without a word; its disk is full; see {suite.folder}/worker-*.log"


def test_a_damaged_row_of_an_unfinished_cell_is_named(make, zygote: Zygote, undisturbed: Suite):
    suite = make()
    zygote.run(job(suite))
    (cell(suite) / "DONE").unlink()
    metrics = cell(suite) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))

    assert zygote.run(job(suite)) == [[1]]

    (said,) = failures(suite).values()
    assert f"{metrics} is damaged (line 2: " in said
    assert said.endswith(f"delete {metrics.parent} and run again")


def test_the_checkpoint_of_a_run_is_whole(undisturbed: Suite):
    state = torch.load(cell(undisturbed) / "checkpoints" / "000005.pt", weights_only=True)
    assert state["iterations"] == 5
