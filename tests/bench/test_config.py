from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import yaml

from algorithms.branch import Branch
from algorithms.dance import Dance
from algorithms.mix import Mix
from bench.config import Cell, Shared, cell_from_record, cell_record, check_layers, make_cell, resolve
from bench.contract import Info
from bench.parse import ArmSpec, parse_arms, weights
from bench.registry import InputError, load

ALGORITHMS = load("algorithms")


def resolved(text: str, shared: Shared | None = None, layers=None):
    (spec,) = parse_arms(text)
    return resolve(spec, shared or Shared(), layers or {}, ALGORITHMS)


def cell(text: str = "dance", shared: Shared | None = None, seed: int = 0) -> Cell:
    (spec,) = parse_arms(text)
    keys = shared or Shared()
    return make_cell("suite", spec, seed, keys, resolve(spec, keys, {}, ALGORITHMS), ())


def test_arms_are_names_with_settings_in_brackets():
    first, second = parse_arms("dance, branch(splits=[0, 2], s=.inf)")
    assert (first.label, first.algo, first.changes) == ("dance", "dance", {})
    assert (second.label, second.algo) == ("branch(splits=[0,2],s=.inf)", "branch")
    assert second.changes == {"splits": [0, 2], "s": math.inf}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no arm is named"),
        ("dance,dance", "named twice"),
        ("dance(tf=0.5),dance(tf = 0.5)", "named twice"),
        ("dance(tf=0.5,tf=0.6)", "sets 'tf' twice"),
        ("dance(tf=0.5)x", "name or name"),
        ("dance(tf)", "key=value"),
    ],
)
def test_malformed_arms_are_refused(text, says):
    with pytest.raises(InputError, match=says):
        parse_arms(text)


def test_settings_nearer_the_arm_win():
    layers = {"branch": {"s": 1.0, "factor": 3, "window": 5}, "branch-mix": {"factor": 4, "window": 6}}
    found = resolved("branch-mix(window=7)", Shared(), layers)
    assert found == Branch(s=1.0, factor=4, window=7, mix=True)


def test_shared_keys_reach_every_arm_that_has_them_unless_it_sets_its_own():
    shared = Shared(kernel="cps", eta=0.5, clip=1e-3)
    rooted = replace(shared, roots="independent")
    assert resolved("dance", rooted) == Dance(kernel="cps", eta=0.5, clip=1e-3, roots="independent")
    with pytest.raises(InputError, match="mix cannot have roots=independent"):
        resolved("mix", rooted)
    assert resolved("mix", shared) == Mix(kernel="cps", eta=0.5, clip=1e-3)
    assert resolved("mix(eta=0.9)", shared) == Mix(kernel="cps", eta=0.9, clip=1e-3)
    assert resolved("branch", Shared()) == Branch()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dance(lr=1e-3)", "'lr' is shared by all arms"),
        ("mix(roots=independent)", "'roots' is shared by all arms"),
        ("dance(steps=5)", "'steps' is shared by all arms"),
        ("dance(speed=1)", "has no setting 'speed'"),
        ("dance(clip=0.1)", "'clip' is shared by all arms"),
        ("dance(tf=2)", "fraction of trained steps"),
        ("dunce", "did you mean 'dance'"),
        ("branch(official=true)", "'official' is an arm of its own, 'branch-official'"),
        ("guard(host=branch(widpru=true))", "'widpru' is an arm of its own, 'branch-widpru'"),
    ],
)
def test_an_arm_may_set_only_its_own_and_what_it_owns(text, says):
    with pytest.raises(InputError, match=says):
        resolved(text)


def test_settings_under_a_name_that_is_no_algorithm_are_refused():
    check_layers({"branch": {}, "branch-mix": {}}, ALGORITHMS)
    with pytest.raises(InputError, match="did you mean 'branch'"):
        check_layers({"brunch": {}}, ALGORITHMS)


def test_reward_weights_sum_to_one():
    assert weights(["soft"]) == {"soft": 1.0}
    assert weights(["a:3", "b"]) == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize("rewards", [["a:0"], ["a:-1"], ["a:much"], ["a:nan"], ["a:inf"], ["a", "a:2"]])
def test_a_weight_that_is_no_positive_number_or_a_reward_named_twice_is_refused(rewards):
    with pytest.raises(InputError, match="reward"):
        weights(rewards)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"updates_per_iteration": 3}, "must divide"),
        ({"steps": 1}, "at least 2"),
        ({"group_size": 1}, "at least 2"),
        ({"train_steps": ()}, "name steps from 0 to 8"),
        ({"train_steps": (9,)}, "name steps from 0 to 8"),
        ({"train_steps": (-1,)}, "name steps from 0 to 8"),
        ({"clip": 0.0}, "positive"),
        ({"eta": -0.1}, "positive"),
        ({"ema": 1.0}, "decay"),
        ({"rewards": ()}, "at least one"),
        ({"lr": 0.0}, "positive"),
        ({"lr": math.inf}, "finite"),
        ({"shift": math.inf}, "finite"),
        ({"iterations": 0}, "positive"),
        ({"micro_batch": 0}, "positive"),
        ({"betas": (0.9, 1.0)}, "decays"),
        ({"weight_decay": -1.0}, "not negative"),
    ],
)
def test_shared_values_without_meaning_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Shared(**change)


def test_all_steps_but_the_last_are_trained_unless_named():
    def trained(shared: Shared) -> tuple[int, ...]:
        return cell("dance", shared).context(0, (0,), {}).train_steps

    assert trained(Shared(steps=5)) == (0, 1, 2, 3)
    assert trained(Shared(steps=5, train_steps=(1,))) == (1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer(Dance):
    """An arm that owns its steps, guidance and solver."""

    info: ClassVar[Info] = replace(Dance.info, owns=frozenset({"steps", "guidance"}))
    steps: int = 14
    guidance: float = 1.0


def test_what_an_arm_owns_is_what_it_runs_with() -> None:
    longer = make_cell("test", ArmSpec(label="longer", algo="longer", changes={}), 0, Shared(), Longer(), ())
    assert (longer.effective["steps"], longer.effective["guidance"]) == (14, 1.0)
    assert longer.context(0, (0,), {}).train_steps == tuple(range(13))
    assert len(longer.context(0, (0,), {}).sigmas) == 15


def test_a_key_that_means_nothing_to_an_arm_is_not_in_its_record() -> None:
    assert cell("mix", Shared()).keys["roots"] is None
    assert cell("dance", Shared()).effective["roots"] == "shared"


@pytest.mark.parametrize("text", ["dance(tf=0.6)", "branch(splits=[0,2],s=.inf)", "mix(strategy=random)"])
def test_a_cell_survives_its_record(text):
    made = cell(text, Shared(train_steps=(0, 2), clip=1e-3))
    read = cell_from_record(yaml.safe_load(yaml.safe_dump(cell_record(made))), ALGORITHMS)
    assert read == made
    assert read.hash == make_cell("suite", parse_arms(text)[0], 0, read.shared, read.algorithm, ()).hash


def test_the_hash_is_of_what_decides_a_cells_numbers():
    shared = Shared(model="/a/folder", model_digest="abc", prompts="/a/file.txt", prompts_digest="def")
    made = cell("dance", shared)
    moved = replace(shared, model="/b/folder", prompts="/b/file.txt")
    assert cell("dance", moved).hash == made.hash
    others = [
        cell("dance", replace(shared, model_digest="abd")),
        cell("dance", replace(shared, prompts_digest="deg")),
        cell("dance", replace(shared, lr=1e-3)),
        cell("dance(tf=0.5)", shared),
        cell("dance", shared, seed=1),
        cell("mix", shared),
    ]
    assert len({made.hash, *(c.hash for c in others)}) == 7


def test_a_folders_name_tells_the_arm_and_fits_every_file_system():
    made = cell("branch(splits=[0,2],s=2)")
    assert made.folder == f"branch_splits=_0_2__s=2-s0-{made.hash}"


def test_a_context_has_what_the_arm_runs_with():
    shared = Shared(steps=4, solver="dpm2m", group_size=6, train_steps=(0, 1))
    ctx = cell("mix", shared, seed=9).context(3, (4, 1, 0, 2, 3), {"a": 1})
    assert (ctx.iteration, ctx.seed, ctx.slots, ctx.group_size, ctx.train_steps) == (3, 9, 5, 6, (0, 1))
    assert (ctx.solver, ctx.steps, ctx.shift, ctx.memory) == ("dpm2m", 4, 3.0, {"a": 1})
    assert ctx.prompts == (4, 1, 0, 2, 3)
    np.testing.assert_allclose(ctx.sigmas, [1, 0.9, 0.75, 0.5, 0])


def test_effective_keys_are_the_arms_own_where_it_may_differ():
    effective = cell("mix", Shared(lr=3e-4)).effective
    assert (effective["kernel"], effective["eta"], effective["clip"], effective["lr"]) == ("flow_sde", 0.7, 1e-4, 3e-4)
    assert effective["roots"] == "shared"  # no choice of the arm's, but what it does


def test_what_a_plan_decides_is_reported_as_it_is():
    flash = cell("mix-flash", Shared(steps=10)).effective
    assert (flash["steps"], flash["solver"]) == (7, "dpm2m")
    nft = cell("nft", Shared(steps=10, train_steps=(0, 1))).effective
    assert (nft["roots"], nft["solver"], nft["train_steps"]) == ("independent", "dpm2m", None)
    assert cell("dance", Shared(steps=10, train_steps=(0, 1))).effective["train_steps"] == [0, 1]
    assert cell("mix", Shared(steps=10, solver="dpm2m")).effective["solver"] == "dpm2m"


def test_an_arm_samples_with_the_solver_it_owns():
    nft = cell("nft", Shared())
    assert nft.context(0, (0,), {}).solver == "dpm2m"
    assert set(nft.algorithm.plan(nft.context(0, (0,), {})).solver) == {"dpm2m"}


def test_an_algorithm_whose_code_changes_is_another_cell(tmp_path):
    def hashed(text: str) -> str:
        plugin = tmp_path / str(len(text)) / "mine.py"
        plugin.parent.mkdir()
        plugin.write_text(text)
        algorithms = load("algorithms", [plugin])
        (spec,) = parse_arms("mine")
        return make_cell("suite", spec, 0, Shared(), resolve(spec, Shared(), {}, algorithms), [str(plugin)]).hash

    source = "from algorithms.dance import Dance\nARMS = {'mine': Dance(tf=0.5)}\n"
    assert hashed(source) != hashed(source + "# credit differs\n")
