"""Each check of the contract can fail: an algorithm that breaks one rule is told so, by the check of that rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bench.conformance import CHECKS, ContractError, subjects
from bench.conformance.choices import a_selection_is_in_range
from bench.conformance.run import check_all
from bench.registry import InputError
from bench.scaffold import new_algorithm

HEAD = """
from dataclasses import dataclass, replace
import time
import numpy as np
from algorithms.dance import Dance
from algorithms.nft import Nft

COUNT = []

@dataclass(frozen=True, slots=True, kw_only=True)
class Broken(Dance):
    '''Breaks one rule.'''
"""
WRONG = {
    "a_plan_is_a_forest_with_the_claimed_leaves": """
    def plan(self, ctx):
        return Dance.plan(self, replace(ctx, group_size=ctx.group_size + (ctx.slots > 1)))
""",
    "a_prompts_plan_is_the_same_alone_or_among_others": """
    def plan(self, ctx):
        return Dance.plan(replace(self, eta=0.3 + 0.1 * ctx.slots), ctx)
""",
    "a_shift_of_all_rewards_changes_no_advantage": """
    def credit(self, plan, outcome, ctx):
        return Dance.credit(self, plan, replace(outcome, reward=outcome.reward ** 2), ctx)
""",
    "advantages_sum_to_zero_where_it_claims_so": """
    def credit(self, plan, outcome, ctx):
        return Dance.credit(self, plan, outcome, ctx) + 0.1
""",
    "a_better_image_has_no_smaller_advantage": """
    def credit(self, plan, outcome, ctx):
        return -Dance.credit(self, plan, outcome, ctx)
""",
    "better_images_below_a_node_do_not_lower_its_advantage": """
    def credit(self, plan, outcome, ctx):
        found = Dance.credit(self, plan, outcome, ctx)
        return np.where(plan.tree.fanout() > 0, -found, found)
""",
    "equal_rewards_teach_nothing": """
    def credit(self, plan, outcome, ctx):
        found = Dance.credit(self, plan, outcome, ctx)
        return found + np.where(np.isnan(found), np.nan, 1e-3 * np.cos(np.arange(len(found))))
""",
    "a_selection_is_in_range": """
    def select(self, plan, outcome, advantage, ctx):
        every = tuple(range(ctx.steps - 1))
        return Dance.select(self, plan, outcome, advantage, replace(ctx, train_steps=every))
""",
    "every_slot_weighs_the_same": """
    def select(self, plan, outcome, advantage, ctx):
        found = Dance.select(self, plan, outcome, advantage, ctx)
        return replace(found, weight=found.weight * (1 + (plan.tree.slot[found.item_node] == 0)))
""",
    "failed_leaves_count_for_nothing": """
    def credit(self, plan, outcome, ctx):
        return Dance.credit(self, plan, replace(outcome, reward=np.nan_to_num(outcome.reward)), ctx)
""",
    "the_same_context_gives_the_same_choices": """
    def plan(self, ctx):
        COUNT.append(None)
        return Dance.plan(replace(self, eta=0.3 + 0.01 * len(COUNT)), ctx)
""",
    "choices_change_no_value_they_are_given": """
    def credit(self, plan, outcome, ctx):
        reward = outcome.reward
        reward -= np.nanmean(reward)
        return Dance.credit(self, plan, outcome, ctx)
""",
    "a_plan_follows_its_settings": """
    def plan(self, ctx):
        return Dance.plan(replace(self, eta=0.7), ctx)
""",
    "memory_is_json": """
    def remember(self, plan, outcomes, ctx):
        return {"rewards": outcomes["total"].reward}
""",
    "the_first_update_is_on_policy": """
    def loss(self, batch, velocity):
        return 2 * Dance.loss(self, batch, velocity)
""",
    "sharing_a_pass_changes_no_gradient": """
    def loss(self, batch, velocity):
        return Dance.loss(self, batch, velocity) / len(batch.x)
""",
    "later_updates_stay_finite": """
    def loss(self, batch, velocity):
        moved = batch.log_prob(velocity["live"]) - batch.log_prob_old
        return Dance.loss(self, batch, velocity) + (0 * moved.abs().max() / (moved == 0).all())
""",
    "a_ratio_beyond_the_clip_range_stops_what_it_pushes": """
    def loss(self, batch, velocity):
        log_prob = batch.log_prob(velocity["live"])
        return -(batch.weight * batch.advantage * (log_prob - log_prob.detach()).exp()).sum()
""",
    "training_follows_the_advantage": """
    def loss(self, batch, velocity):
        return -Dance.loss(self, batch, velocity)
""",
    "a_cell_is_what_its_record_says": """
    when: float = 0.0
    def __post_init__(self):
        object.__setattr__(self, "when", self.when + 1.0)
""",
    "what_a_reader_must_know_is_there": """
    def loss(self, batch, velocity):
        return Dance.loss(self, batch, velocity)
""",
    "its_file_is_short": "\n" * 140,
}


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], Path]:
    def write(body: str) -> Path:
        file = tmp_path / "broken.py"
        file.write_text(f"{HEAD}\n{body}\n\nARMS = {{'broken': Broken()}}\n")
        return file

    return write


def test_there_is_an_algorithm_that_breaks_each_rule():
    assert set(WRONG) == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_broken_rule_is_found_by_its_check(broken, check):
    (subject,) = subjects(str(broken(WRONG[check.__name__])))
    with pytest.raises(ContractError):
        check(subject)


IDLE = """
    info = replace(Dance.info, owns=Dance.info.owns | {"updates_per_iteration"})
    def updates(self, ctx):
        return 3
    def select(self, plan, outcome, advantage, ctx):
        found = Dance.select(self, plan, outcome, advantage, ctx)
        return replace(found, update=2 * (np.arange(len(found.read)) % 2))
"""


def test_an_optimiser_step_that_trains_nothing_is_found(broken):
    (subject,) = subjects(str(broken(IDLE)))
    with pytest.raises(ContractError, match=r"of 3 optimiser steps \[1\] train nothing"):
        a_selection_is_in_range(subject)


def test_an_algorithm_that_only_inherits_keeps_all_rules(broken):
    (subject,) = subjects(str(broken("")))
    for check in CHECKS:
        check(subject)


def test_the_checks_of_a_broken_algorithm_are_told_a_line_each_with_the_number_that_failed(broken):
    said: list[str] = []
    body = WRONG["a_better_image_has_no_smaller_advantage"] + WRONG["memory_is_json"]
    failed = check_all(subjects(str(broken(body))), said.append)
    lines = [line for line in said if line.startswith("  FAILED")]
    assert failed == len(lines) == 4
    assert "earns more, and its advantage falls from" in lines[0]
    assert any("what it remembers is not JSON" in line for line in lines)
    assert any("no docstring says the rule of credit" in line for line in lines)
    assert said[-1] == f"{len(CHECKS)} checks, 4 failed"


def test_what_an_algorithm_raises_is_told_with_its_place(broken):
    said: list[str] = []
    file = broken("    def loss(self, batch, velocity):\n        raise ArithmeticError('out of order')\n")
    check_all(subjects(str(file)), said.append)
    assert any(f"ArithmeticError: out of order ({file}:" in line for line in said)


def test_a_new_algorithm_keeps_all_rules(tmp_path):
    file = new_algorithm("my-grpo", tmp_path)
    said: list[str] = []
    assert check_all(subjects(str(file)), said.append) == 0
    assert said[0].startswith("my-grpo: steps x group size 6x2")
    assert "emplate" not in file.read_text()
    assert "class MyGrpo(Algorithm)" in file.read_text()


NAMES: Mapping[str, str] = {
    "dance": "'dance' is taken, by algorithms.dance",
    "My": "no name for an algorithm",
    "a_b": "no name for an algorithm",
    "numpy": "would hide a module or a class",
    "class": "would hide a module or a class",
    "plan": "would hide a module or a class",
    "../up": "no name for an algorithm",
    "": "no name for an algorithm",
}


@pytest.mark.parametrize(("name", "says"), NAMES.items())
def test_a_new_algorithm_needs_a_name_of_its_own(tmp_path, name, says):
    with pytest.raises(InputError, match=says):
        new_algorithm(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_overwritten(tmp_path):
    (tmp_path / "mine.py").write_text("dear to me")
    with pytest.raises(InputError, match=r"mine\.py exists"):
        new_algorithm("mine", tmp_path)
    assert (tmp_path / "mine.py").read_text() == "dear to me"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be written: No such file"):
        new_algorithm("mine", tmp_path / "nowhere")
