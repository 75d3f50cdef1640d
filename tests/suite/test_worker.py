"""What a worker does with a suite: every cell once, failures on record, and settings that change what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Zygote, facts, job

from bench import record
from bench.preview import planned
from bench.suite import Suite, failures

LOSS_RAISES = """
from algorithms.dance import Dance


class Lossy(Dance):
    def loss(self, batch, velocity):
        raise ArithmeticError("this loss is out of order")


ARMS = {"lossy": Lossy()}
"""
REWARDS = """
import numpy as np
from bench.contract import RewardInfo


class Dead:
    \"\"\"Raises at every image.\"\"\"

    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")

    def __call__(self, images, prompts, group):
        raise OSError("the judge is not at home")


class Fussy(Dead):
    \"\"\"Raises at every fourth image or so, alone or in a batch.\"\"\"

    def __call__(self, images, prompts, group):
        bright = images.flatten(1).mean(1).double().cpu().numpy()
        if ((1e6 * bright).astype(int) % 4 == 0).any():
            raise ValueError("not this one")
        return bright


REWARDS = {"dead": Dead, "fussy": Fussy}
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "lossy_arm.py").write_text(LOSS_RAISES)
    (folder / "rewards_that_fail.py").write_text(REWARDS)
    return folder


@pytest.fixture(scope="module")
def one(make, zygote: Zygote) -> Suite:
    """A finished suite of two arms."""
    suite = make("dance,mix")
    assert zygote.run(job(suite)) == [[0]]
    return suite


def ran(suite: Suite) -> list[str]:
    log = suite.folder / "ran.txt"
    return sorted(log.read_text().split()) if log.is_file() else []


def test_two_workers_on_one_suite_run_each_cell_once(one: Suite, make, zygote: Zygote):
    both = make("dance,mix")

    assert zygote.run(job(both, workers=2, ran=str(both.folder / "ran.txt"))) == [[0, 0]]

    assert ran(both) == sorted(cell.folder for cell in both.cells)
    assert [facts(both, cell) for cell in (0, 1)] == [facts(one, cell) for cell in (0, 1)]


def test_a_worker_on_a_finished_suite_runs_nothing(one: Suite, zygote: Zygote):
    before = contents(one.folder)

    assert zygote.run(job(one, ran=str(one.folder / "ran.txt"))) == [[0]]

    assert ran(one) == []
    assert contents(one.folder) == before


def test_a_cell_whose_DONE_is_of_another_configuration_runs_again(make, zygote: Zygote):
    suite = make(iterations=2)
    zygote.run(job(suite))
    first = facts(suite)
    (suite.folder / suite.cells[0].folder / "DONE").write_text("0123456789\n")
    assert suite.missing() == list(suite.cells)

    assert zygote.run(job(suite, ran=str(suite.folder / "ran.txt"))) == [[0]]

    assert ran(suite) == [suite.cells[0].folder]
    assert facts(suite) == first


def test_a_loss_that_raises_fails_its_cell_and_no_other(make, zygote: Zygote, plugins: Path):
    suite = make("lossy,dance", words=["--plugin", str(plugins / "lossy_arm.py")], iterations=2)

    assert zygote.run(job(suite)) == [[1]]

    assert failures(suite) == {"lossy seed 0": "ArithmeticError: this loss is out of order"}
    assert facts(suite, 1)["result"]["arm"] == "dance"
    error = (suite.folder / suite.cells[0].folder / "error.txt").read_text()
    assert "lossy_arm.py" in error
    assert "Traceback" in error


def test_a_training_that_diverges_stops_and_names_the_remedy(make, zygote: Zygote):
    suite = make("dance", words=["--set", "lr=1e30"], iterations=3)

    assert zygote.run(job(suite)) == [[1]]

    (said,) = failures(suite).values()
    assert "diverged" in said
    assert "lower lr" in said


def test_a_failed_cell_runs_again_and_its_error_goes(make, zygote: Zygote, plugins: Path, tmp_path: Path):
    plugin = tmp_path / "mended_arm.py"
    plugin.write_text(LOSS_RAISES)
    suite = make("lossy", words=["--plugin", str(plugin)], iterations=1)
    assert zygote.run(job(suite)) == [[1]]
    plugin.write_text(LOSS_RAISES.replace("raise ArithmeticError", "return super().loss(batch, velocity)  #"))

    assert zygote.run(job(suite)) == [[0]]

    assert failures(suite) == {}
    assert not (suite.folder / suite.cells[0].folder / "error.txt").exists()


def test_a_reward_that_scores_nothing_fails_the_cell_with_its_own_words(make, zygote: Zygote, plugins: Path):
    suite = make(rewards="dead", words=["--plugin", str(plugins / "rewards_that_fail.py")])

    assert zygote.run(job(suite)) == [[1]]

    assert failures(suite) == {
        "dance seed 0": "RuntimeError: no image could be scored: dead: OSError: the judge is not at home"
    }


def test_an_image_that_cannot_be_scored_fails_alone_and_is_counted(make, zygote: Zygote, plugins: Path):
    words = ["--plugin", str(plugins / "rewards_that_fail.py")]
    suite = make(rewards="fussy", words=words, eval_rewards="[soft]")

    assert zygote.run(job(suite)) == [[0]]

    rows = facts(suite)["rows"]
    assert 0 < sum(row["failed"] for row in rows) < sum(row["samples"] for row in rows)
    assert {text for row in rows for text in row["failures"]} == {"fussy: ValueError: not this one"}
    assert all(0 < row["reward"]["fussy"] < 1 for row in rows)  # the mean of those that were scored


def test_a_damaged_checkpoint_says_how_to_go_on(make, zygote: Zygote):
    suite = make(iterations=4)
    zygote.run(job(suite))
    first, folder = facts(suite), suite.folder / suite.cells[0].folder
    (folder / "DONE").unlink()
    (folder / "checkpoints" / "000004.pt").write_bytes(b"not a checkpoint")

    assert zygote.run(job(suite)) == [[1]]
    said = failures(suite)["dance seed 0"]
    assert "000004.pt cannot be read" in said
    assert "delete it and the one before is used" in said

    (folder / "checkpoints" / "000004.pt").unlink()
    assert zygote.run(job(suite)) == [[0]]
    assert facts(suite) == first


def test_micro_batch_changes_no_reward(one: Suite, make, zygote: Zygote):
    small = make("dance,mix", micro_batch=3)
    assert zygote.run(job(small)) == [[0]]

    for cell in (0, 1):
        rewards = [[row["reward"]["soft"] for row in facts(suite, cell)["rows"]] for suite in (one, small)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


def test_what_is_saved_and_judged_is_the_moving_average(make, zygote: Zygote):
    suite = make(ema=0.9, updates_per_iteration=2, iterations=2)
    assert zygote.run(job(suite)) == [[0]]

    folder = suite.folder / suite.cells[0].folder
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "000002.pt", weights_only=True)
    saved = load_file(next((folder / "pipeline" / "transformer").glob("*.safetensors")))
    assert state["optimizer_steps"] == 4
    assert same(saved, state["ema"])
    assert not same(saved, state["parameters"])


def test_two_updates_an_iteration_train_the_second_shard_off_policy(make, zygote: Zygote):
    suite = make(updates_per_iteration=2)
    assert zygote.run(job(suite)) == [[0]]

    rows = facts(suite)["rows"]
    assert all(0 < row["log_ratio_max"] < 1 for row in rows)
    assert all(row["drift"] < 1e-5 for row in rows)


def test_bf16_trains_the_policy_and_judges_it_as_the_base_was_judged(one: Suite, make, zygote: Zygote):
    still, moving = make(precision="bf16", lr="1e-30", iterations=1, weight_decay=0), make(precision="bf16")
    assert zygote.run(job(still), job(moving)) == [[0], [0]]

    found = record.read_suite(still.folder)
    (base,) = found.bases.values()
    result = found.cells[0].result
    assert result is not None
    assert result["evaluation"] == base["evaluation"]  # weights that did not move score what they scored
    rounded, exact = facts(moving)["rows"], facts(one)["rows"]
    assert all(row["grad_norm"] > 0 for row in rounded)
    assert rounded[0]["reward"] != exact[0]["reward"]
    assert rounded[0]["reward"]["soft"] == pytest.approx(exact[0]["reward"]["soft"], abs=0.05)


def same(saved: dict[str, torch.Tensor], values: list[torch.Tensor]) -> bool:
    return len(saved) == len(values) and all(
        any(value.shape == tensor.shape and torch.equal(value, tensor) for tensor in saved.values()) for value in values
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FIELD = ("flow", "flow-fast", "flow-fast-window", "mix-flash", "tempflow", "guard", "nft", "vgrpo", "awm", "ddpo")
"""The arms whose rollouts, objectives or policies are of a kind that the first three have not."""


FEW = {"tempflow.points": 2, "flow-fast-window.window": 2}
"""Settings that five steps and four images can have."""


@pytest.fixture(scope="module")
def field(make, zygote: Zygote) -> Suite:
    """A finished suite of those arms, with two updates an iteration."""
    suite = make(",".join(FIELD), updates_per_iteration=2, iterations=3, checkpoint_every=1, **FEW)
    assert zygote.run(job(suite)) == [[0]]
    return suite


@pytest.mark.parametrize("arm", FIELD)
def test_an_arm_of_any_kind_trains_and_costs_what_was_planned(field: Suite, arm):
    (cell,) = [cell for cell in field.cells if cell.arm == arm]
    done = record.read_cell(field.folder / cell.folder)
    assert done.result is not None
    assert len(done.rows) == 3
    assert all(row["grad_norm"] > 0 for row in done.rows)
    leaves, cost = sum(row["samples"] for row in done.rows), planned(cell).cost
    calls = done.result["calls"]
    assert calls["rollout"] == pytest.approx(cost.rollout_calls * leaves)
    assert calls["update"] == pytest.approx(cost.update_calls * leaves)
    policies = {name: count / leaves for name, count in calls.items() if name not in ("rollout", "update", "anchor")}
    assert policies == pytest.approx(dict(cost.named_calls))
    assert done.result["nfe"]["named"] == pytest.approx(dict(cost.named_calls))


def test_what_an_algorithm_remembers_is_in_the_checkpoint(field: Suite):
    (cell,) = [cell for cell in field.cells if cell.arm == "ddpo"]
    newest = max((field.folder / cell.folder / "checkpoints").glob("*.pt"))
    memory = torch.load(newest, weights_only=True)["memory"]
    assert list(memory) == ["soft"]
    assert sum(map(len, memory["soft"].values())) == 3 * 2 * 4  # iterations, prompts, images


def test_a_host_is_in_the_record_with_its_settings_and_its_deviations(field: Suite):
    (cell,) = [cell for cell in field.cells if cell.arm == "guard"]
    done = record.read_cell(field.folder / cell.folder)
    assert done.result is not None
    host = done.result["algorithm"]["host"]
    assert (host["class"], host["kl"], host["std"]) == ("algorithms.flow.Flow", 0.0, "group")
    assert done.config["algorithm"]["host"] == host
    assert any(line.startswith("flow: ") for line in done.result["info"]["deviations"])
    assert done.result["effective"]["clip"] == 2e-6
    assert done.result["effective"]["eta"] == 1.0  # the suite's, which the host has


FROZEN = """
from algorithms.nft import Nft


class Frozen(Nft):
    def decay(self, ctx):
        return {"old": 1.0}


ARMS = {"frozen": Frozen()}
"""


def test_paths_are_sampled_by_the_policy_that_the_plan_names(make, zygote: Zygote, tmp_path):
    """An old policy that keeps all of itself samples the same images however fast the live one learns."""
    plugin = tmp_path / "frozen_arm.py"
    plugin.write_text(FROZEN)
    words = ["--plugin", str(plugin)]
    suites = [make("frozen,nft", words=words, iterations=4, checkpoint_every=1, lr=lr) for lr in ("1e-2", "1e-4")]
    assert zygote.run(*map(job, suites)) == [[0], [0]]
    fast, slow = ({c.arm: facts(suite, at) for at, c in enumerate(suite.cells)} for suite in suites)
    rewards = {arm: [[row["reward"] for row in side[arm]["rows"]] for side in (fast, slow)] for arm in fast}
    assert rewards["frozen"][0] == rewards["frozen"][1]
    assert rewards["nft"][0][0] == rewards["nft"][1][0]
    assert rewards["nft"][0] != rewards["nft"][1]
    assert fast["frozen"]["weights"] != slow["frozen"]["weights"]
