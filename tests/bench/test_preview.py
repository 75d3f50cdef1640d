"""NFE figures through the planner: each expectation is counted by hand, or published (DESIGN.md 4.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from toy import PROMPTS, ToyPolicy

from algorithms.dance import Dance
from bench import preview
from bench.config import Cell, Shared, make_cell, resolve
from bench.cost import Nfe
from bench.models.catalog import Family
from bench.noise import Noise
from bench.parse import parse_arms
from bench.policy import encoded
from bench.preview import config_diff, dry_run
from bench.registry import InputError, load
from bench.rollout import rollout

ALGORITHMS = load("algorithms")
PAPER = Shared(steps=20, group_size=16, iterations=300)


def cell(text: str, shared: Shared = PAPER) -> Cell:
    (spec,) = parse_arms(text)
    return make_cell("test", spec, 0, shared, resolve(spec, shared, {}, ALGORITHMS), ())


def planned(text: str, **change) -> Nfe:
    found = preview.planned(cell(text, replace(PAPER, **change)))
    cost, leaves = found.cost, found.leaves
    assert leaves == change.get("group_size", 16)
    return cost


def approx(*five: float):
    """Return what a rollout costs by paper, edges and calls, and an update by edges and calls."""
    return pytest.approx(list(five))


def numbers(cost: Nfe) -> list[float]:
    return [*cost.nested()["rollout"].values(), *cost.nested()["update"].values()]


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        # dance: 16 paths of 20 edges; the first step's forward is shared; 19 of 20 steps are trained.
        ("dance", approx(20, 20, (1 + 16 * 19) / 16, 19, 18.0625)),
        ("branch", approx(13.6875, 13.625, 12.6875, 12.625, 11.6875)),
        ("branch(splits=mixed)", approx(11.5625, 11.5, 10.5625, 10.5, 9.5625)),
        ("branch(splits=sparse)", approx(9.4375, 9.375, 8.4375, 8.375, 7.4375)),
        ("branch-widpru", approx(13.6875, 13.625, 12.6875, 8.125, 7.1875)),
        # Extreme: 58 edges to the last split, and the 9 trained chain edges of 8 of 16 leaves, as many as Parent-Top1.
        ("branch-widpru-extreme", approx(13.6875, 13.625, 12.6875, 8.125, 7.1875)),
        # The window slides over steps 10 to 18, which are all 16 edges wide: its place does not matter.
        ("branch-deppru(slide=1)", approx(13.6875, 13.625, 12.6875, 8.625, 7.6875)),
        ("dance(roots=independent)", approx(20, 20, 20, 19, 19)),
        # 1 + 4*5 + 16*15 = 261 nodes, 245 of them inner; 16 edges and parents on the last step.
        ("branch(factor=4,splits=[0,5])", approx(261 / 16, 260 / 16, 245 / 16, 244 / 16, 229 / 16)),
    ],
)
def test_planned_figures_of_arms_whose_cost_does_not_move(arm, expected):
    assert numbers(planned(arm, iterations=7)) == expected


def test_dance_trains_the_fraction_of_usable_steps_that_the_code_does():
    cost = planned("dance(tf=0.6)", iterations=3)
    assert cost.update_edges == 11
    assert 11 - 15 / 16 <= cost.update_calls <= 11  # at most all 16 first edges share a parent


def test_branch_mix_with_its_window_at_the_start_trains_34_edges_of_19_parents():
    cost = planned("branch-mix", iterations=30)
    assert (cost.update_edges, cost.update_calls) == (2.125, 1.1875)


def test_branch_mix_costs_the_mean_over_its_window():
    # algorithms.md 6.7: edges of splits and window by the window's start; 300 iterations of slide 30 see starts 0 to 9.
    edges = [34, 38, 40, 38, 46, 50, 46, 62, 70, 78]
    cost = planned("branch-mix(slide=1)", iterations=10)
    assert cost.update_edges == pytest.approx(np.mean(edges) / 16)
    # Parents: 15 above the splits (steps 0, 3, 6, 9: 1, 2, 4, 8); a window step adds as many as its level is wide.
    width = [1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16]
    parents = [15 + sum(width[k] for k in range(start, start + 4) if k not in (0, 3, 6, 9)) for start in range(10)]
    assert parents[0] == 19
    assert cost.update_calls == pytest.approx(np.mean(parents) / 16)
    assert cost.rollout_calls == 12.6875


def test_mix_costs_the_mean_over_its_window():
    # 300 iterations of 25 each see starts 0 to 11; before its window's first step a group is one path.
    starts = np.arange(12)
    cost = planned("mix")
    assert cost.rollout_paper == 20
    assert cost.rollout_calls == pytest.approx(np.mean((starts + 1) / 16 + 19 - starts))
    assert cost.rollout_edges == pytest.approx(np.mean(starts / 16 + 20 - starts))
    assert cost.update_edges == 4
    assert cost.update_calls == pytest.approx((1 + 3 * 16) / 16)


def test_mix_saves_the_published_share_of_rollout_calls():
    # algorithms.md 4.8: T 25, 12 images, starts 0 to 11: 228.5 forwards a prompt instead of 300.
    assert planned("mix(tau=1)", steps=25, group_size=12, iterations=12).rollout_calls * 12 == pytest.approx(228.5)


@pytest.mark.parametrize("arm", ["dance", "mix", "branch(splits=[0,2])", "branch-mix(splits=[0,2],window=2)"])
def test_a_rollout_runs_the_calls_that_were_planned(arm):
    shared = Shared(steps=8, group_size=4, iterations=1)
    found, policy = cell(arm, shared), ToyPolicy()
    plan = found.algorithm.plan(found.context(0, range(3), {}))
    rolled = rollout(policy, plan, encoded(policy, PROMPTS[:3]), Noise(seed=0, iteration=0), chunk=7)
    planned_cell = preview.planned(found)
    cost, leaves = planned_cell.cost, planned_cell.leaves
    assert rolled.calls == policy.rows == cost.rollout_calls * leaves * 3


@pytest.mark.parametrize(
    ("arm", "change", "says"),
    [
        ("branch", {"group_size": 12}, "its plan has 16 leaves a prompt, but group_size is 12"),
        ("branch(factor=3)", {}, "81 leaves"),
        ("branch(splits=[0,3,6,19])", {}, "the last that can branch is 18"),
        ("branch", {"steps": 10}, "the last that can branch is 8"),
        ("branch-deppru(window=10)", {}, "longer than the path"),
        ("branch-mix(window=20)", {}, "longer than the path"),
        ("mix(window=20)", {}, "does not fit"),
        ("mix(strategy=frozen,start=16)", {}, "does not fit: steps 0 to 18"),
        ("mix(eta=0)", {}, "siblings on ODE edges"),
        ("dance(kernel=langevin)", {}, "unknown kernel 'langevin'"),
        ("dance(kernel=ode)", {}, "kernel ode has no noise"),
        ("mix(strategy=frozen,start=10)", {"train_steps": (0, 1)}, "trains nothing"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_before_anything_runs(arm, change, says):
    with pytest.raises(InputError, match=says) as error:
        preview.planned(cell(arm, replace(PAPER, **({"iterations": 1} | change))))
    assert str(error.value).startswith(arm.partition("(")[0])


def test_a_shortest_path_can_be_planned_under_every_window_strategy():
    for strategy in ("progressive", "linear-decay", "exponential-decay", "random", "frozen"):
        shared = Shared(steps=2, group_size=2, iterations=3)
        assert preview.planned(cell(f"mix(window=1,strategy={strategy})", shared)).cost.update_edges == 1


def test_the_diff_shows_the_shared_keys_that_arms_set_differently_and_no_others():
    arms = [cell("dance"), cell("mix"), cell("branch(eta=0.5)")]
    assert config_diff(arms) == {
        "kernel": {"dance": "dance_sde", "mix": "flow_sde", "branch(eta=0.5)": "dance_sde"},
        "eta": {"dance": 0.3, "mix": 0.7, "branch(eta=0.5)": 0.5},
    }
    alike = Shared(steps=20, group_size=16, kernel="cps", eta=0.5, clip=1e-3)
    assert config_diff([cell("dance", alike), cell("mix", alike)]) == {}


def test_the_diff_shows_the_updates_of_an_arm_that_counts_its_own():
    shared = replace(PAPER, updates_per_iteration=4, prompts_per_iteration=32)
    arms = [cell(name, shared) for name in ("branch", "branch-official", "guard(host=branch-official)")]
    assert config_diff(arms)["updates_per_iteration"] == {arm.arm: 4 if arm.arm == "branch" else 36 for arm in arms}
    ctx = arms[1].context(2, range(32), {})
    assert (ctx.updates, ctx.optimizer_steps) == (36, 108)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps(Dance):
    """Says how many optimiser steps it takes, and in which of them what is trained."""

    many: int = 3
    last: int = 2

    def updates(self, ctx):
        return self.many

    def select(self, plan, outcome, advantage, ctx):
        found = Dance.select(self, plan, outcome, advantage, ctx)
        return replace(found, update=np.arange(len(found.read)) % (self.last + 1))


class Owner(Steps):
    info = replace(Dance.info, owns=Dance.info.owns | {"updates_per_iteration"})


class Silent(Owner):
    def select(self, plan, outcome, advantage, ctx):
        return Dance.select(self, plan, outcome, advantage, ctx)


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (Steps(), "owns updates_per_iteration if its selection says `update`"),
        (Silent(), "owns updates_per_iteration if its selection says `update`"),
        (Owner(last=3), "select names optimiser step 3 of 3"),
        (Owner(many=0), "updates returned 0; a number from 1 on"),
    ],
)
def test_updates_that_contradict_each_other_are_refused_before_anything_runs(algorithm, says):
    with pytest.raises(InputError, match=says):
        preview.planned(replace(cell("dance"), algorithm=algorithm))
    assert preview.planned(replace(cell("dance"), algorithm=Owner())).cost.update_edges == 19


def test_arms_that_differ_in_how_noise_is_scored_or_when_edges_are_trained_are_not_alike():
    arms = [cell(f"branch-official({change})", replace(PAPER, iterations=1)) for change in ("", "noise=2", "edges=24")]
    assert dry_run(arms, None)["alike"] == {}


def test_arms_that_do_the_same_are_named():
    early = Shared(steps=10, iterations=3, train_steps=(0, 1, 2, 3))
    arms = [cell(f"{name}(splits=[0,1,2,3])", early) for name in ("branch", "branch-widpru", "branch-mix")]
    assert dry_run(arms, None)["alike"] == {"branch-widpru(splits=[0,1,2,3])": "branch(splits=[0,1,2,3])"}
    late = replace(early, train_steps=None)
    assert dry_run([cell(arm.arm, late) for arm in arms], None)["alike"] == {}


def test_a_dry_run_counts_every_cell(tmp_path: Path):
    shown = dry_run([cell("dance", Shared(steps=5, group_size=4, iterations=2))], tmp_path)
    (row,) = shown["cells"]
    assert (row["arm"], row["leaves"], row["seconds_per_iteration"]) == ("dance", 4, None)
    assert row["nfe"]["update"] == {"edges": 4.0, "calls": (1 + 4 * 3) / 4}


def test_classifier_free_guidance_doubles_what_is_planned(monkeypatch):
    guided = Family(adapter="none:None", classifier_free=True)
    monkeypatch.setattr("bench.models.catalog.FAMILIES", {"FluxPipeline": guided})
    twice, once = (preview.planned(cell("mix", replace(PAPER, iterations=1, guidance=g))).cost for g in (4.5, 1.0))
    assert twice.rollout_calls == 2 * once.rollout_calls
    assert twice.update_calls == 2 * once.update_calls
    assert twice.rollout_edges == once.rollout_edges
