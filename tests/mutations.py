"""Deliberate errors, each of which must turn a test red: `python tests/mutations.py [NAME ...]`.

A copy of the tree is broken in one place at a time, and the tests named with the error are run on it. An error that one
of them does not notice has survived it: that test is to be mended. Exit status 1 if one survives, or if the tests are
red already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("bench", "algorithms", "rewards", "eval", "reports", "tests", "docs", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One error: `before` stands in `file` exactly once."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    """That must go red, each of them in one of its cases at least."""


MUTATIONS = (
    Mutation(
        name="credit: the advantage's sign is flipped",
        file="bench/tree.py",
        before="np.where(valid, centred / (std + eps), np.nan)",
        after="np.where(valid, -centred / (std + eps), np.nan)",
        tests=(
            "tests/bench/test_tree.py::test_normalisation_states_its_ddof_and_eps",
            "tests/algorithms/test_branch.py::test_fused_rewards_are_normalised_per_depth_with_unbiased_std",
        ),
    ),
    Mutation(
        name="loss: the advantage's sign is flipped",
        file="bench/loss.py",
        before="(-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))",
        after="(advantage * ratio).maximum(advantage * ratio.clamp(1 - clip, 1 + clip))",
        tests=(
            "tests/bench/test_loss.py::test_the_surrogate_is_ppos_objective_negated",
            "tests/bench/test_update.py::test_on_policy_the_loss_is_minus_the_weighted_advantages",
        ),
    ),
    Mutation(
        name="loss: the clip is dropped",
        file="bench/loss.py",
        before="(-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))",
        after="-advantage * ratio",
        tests=(
            "tests/bench/test_loss.py::test_only_a_ratio_that_left_the_range_the_way_its_advantage_pushes_stops_the_gradient",
            "tests/bench/test_update.py::test_a_clipped_edge_has_no_gradient",
        ),
    ),
    Mutation(
        name="loss: the better of the two surrogates is taken",
        file="bench/loss.py",
        before="(-advantage * ratio).maximum(",
        after="(-advantage * ratio).minimum(",
        tests=("tests/bench/test_loss.py::test_the_surrogate_is_ppos_objective_negated",),
    ),
    Mutation(
        name="noise: siblings share no draw",
        file="bench/noise.py",
        before='return "shared", slot[n], depth[n], path[parent[n]]',
        after='return "shared", slot[n], depth[n], path[n]',
        tests=(
            "tests/bench/test_noise.py::test_siblings_are_a_shared_and_an_own_draw_mixed_as_in_equation_two",
            "tests/statistics/test_noise_distribution.py::test_siblings_have_the_covariance_of_equation_two",
        ),
    ),
    Mutation(
        name="noise: arms share no initial noise",
        file="bench/noise.py",
        before="return self.root_stream, slot[root], rank[root]",
        after="return self.root_stream, slot[root], rank[root] + len(tree)",
        tests=("tests/bench/test_noise.py::test_root_noise_is_the_same_in_every_arm",),
    ),
    Mutation(
        name="noise: a sibling's variance is above 1",
        file="bench/noise.py",
        before="math.sqrt(rho) * xi_0 + math.sqrt(1 - rho) * out[i]",
        after="math.sqrt(rho) * xi_0 + out[i]",
        tests=(
            "tests/statistics/test_noise_distribution.py::test_siblings_have_the_covariance_of_equation_two",
            "tests/theory/test_claims.py::test_every_simulation_confirms_its_closed_form",
        ),
    ),
    Mutation(
        name="plan: a split samples 4 times the std that it scores",
        file="bench/plan.py",
        before="> 1), coupling, 0.0),\n        noise_scale=np.ones(len(tree)),",
        after="> 1), coupling, 0.0),\n        noise_scale=np.where(inner & (np.asarray(fanout)[at] > 1), 4.0, 1.0),",
        tests=(
            "tests/theory/test_gaussian.py::test_split_noise_by_equation_two_leaves_every_nodes_marginal_as_it_was",
            "tests/theory/test_claims.py::test_what_holds_and_what_does_not",
        ),
    ),
    Mutation(
        name="rollout: the plan's noise scale is ignored",
        file="bench/rollout.py",
        before="gauss.sample(eps * scale.view(-1, *[1] * (eps.ndim - 1)))",
        after="gauss.sample(eps)",
        tests=("tests/theory/test_gaussian.py::test_a_rollout_of_any_plan_has_the_closed_forms_means_and_covariances",),
    ),
    Mutation(
        name="plan: the last step may be stochastic",
        file="bench/plan.py",
        before="if not ode[tree.level(tree.steps)].all():",
        after="if False:",
        tests=("tests/bench/test_plan.py::test_a_plan_that_is_mathematically_wrong_is_refused",),
    ),
    Mutation(
        name="config: the last step is trained",
        file="bench/config.py",
        before='range(keys["steps"] - 1)',
        after='range(keys["steps"])',
        tests=("tests/bench/test_config.py::test_all_steps_but_the_last_are_trained_unless_named",),
    ),
    Mutation(
        name="credit: the std's ddof is ignored",
        file="bench/tree.py",
        before="np.maximum(count - ddof, 1)",
        after="np.maximum(count, 1)",
        tests=("tests/bench/test_tree.py::test_normalisation_states_its_ddof_and_eps",),
    ),
    Mutation(
        name="credit: fusion weights are uniform",
        file="bench/tree.py",
        before="np.where(valid, 0.0 if log_weight is None else log_weight, -np.inf)",
        after="np.where(valid, 0.0, -np.inf)",
        tests=(
            "tests/bench/test_tree.py::test_fusing_weighs_leaves_by_the_softmax_of_their_log_weights",
            "tests/limits/test_limits.py::test_path_weights_at_beta_1_are_not_uniform",
        ),
    ),
    Mutation(
        name="credit: a failed leaf counts as 0",
        file="bench/tree.py",
        before="valid = ~np.isnan(reward)\n    mass",
        after="reward = np.nan_to_num(reward)\n    valid = ~np.isnan(reward)\n    mass",
        tests=("tests/bench/test_tree.py::test_a_failed_leaf_weighs_nothing_and_a_node_without_another_is_unknown",),
    ),
    Mutation(
        name="credit: BranchGRPO normalises a tree, not its depths",
        file="algorithms/branch.py",
        before="tree.root() * (tree.steps + 1) + tree.depth",
        after="tree.root()",
        tests=("tests/algorithms/test_branch.py::test_fused_rewards_are_normalised_per_depth_with_unbiased_std",),
    ),
    Mutation(
        name="kernel: the std lacks sqrt(d)",
        file="bench/kernel.py",
        before="s = eta * (sigma - sigma_next).sqrt()",
        after="s = eta * (sigma - sigma_next)",
        tests=(
            "tests/bench/test_kernel.py::test_the_unified_form_is_the_textbook_form",
            "tests/statistics/test_sampler_statistics.py::test_a_chains_leaf_has_the_closed_forms_mean_and_variance",
        ),
    ),
    Mutation(
        name="kernel: the log-prob is a sum over dimensions",
        file="bench/kernel.py",
        before="square.flatten(1).mean(1)",
        after="square.flatten(1).sum(1)",
        tests=("tests/bench/test_kernel.py::test_the_log_prob_is_the_mean_over_dimensions_of_the_gaussian_density",),
    ),
    Mutation(
        name="select: a tree with more edges has more say",
        file="bench/select.py",
        before="1.0 / (trees * np.bincount(root, minlength=trees)[root])",
        after="np.full(len(node), 1.0 / len(node))",
        tests=("tests/bench/test_select.py::test_every_tree_has_the_same_say_whatever_it_trains",),
    ),
    Mutation(
        name="update: the moving average stands still",
        file="bench/update.py",
        before="average.device), 1 - decay)",
        after="average.device), 0.0)",
        tests=("tests/bench/test_update.py::test_the_moving_average_warms_up_and_then_keeps_its_decay",),
    ),
)
BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


def copied(to: Path) -> Path:
    """Copy what the tests need into an empty folder."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=LEFT_OUT)
        else:
            shutil.copy(source, to / name)
    return to


def mutated(mutation: Mutation, text: str) -> str:
    """Return the text with the error in it; ValueError unless there is exactly one place for it."""
    if (places := text.count(mutation.before)) != 1:
        raise ValueError(f"{mutation.name}: {mutation.before!r} stands {places} times in {mutation.file}, not once")
    return text.replace(mutation.before, mutation.after)


def red(tree: Path, tests: Iterable[str]) -> list[str]:
    """Return the tests that fail in a tree; RuntimeError if they cannot be run."""
    # No bytecode: that of an error may have the size and second of the code before it.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]
    ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if ran.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    said = [line.split(" ", 1) for line in ran.stdout.splitlines()]
    return [rest.split(" - ")[0] for word, *tail in said if word in ("FAILED", "ERROR") for rest in tail]


def unnoticed(mutation: Mutation, tree: Path) -> list[str]:
    """Return the error's tests that stay green with it in a copy of the tree, and mend the copy."""
    file = tree / mutation.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(mutated(mutation, sound), encoding="utf-8")
    try:
        noticed = {test.partition("[")[0] for test in red(tree, mutation.tests)}
    finally:
        file.write_text(sound, encoding="utf-8")
    return [test for test in mutation.tests if test not in noticed]


def main(names: Sequence[str]) -> int:
    """Try the errors of those names, by default all; return 1 unless every test that is named with one notices it."""
    if unknown := [name for name in names if name not in BY_NAME]:
        print(f"no mutation {unknown[0]!r}; known: {', '.join(map(repr, BY_NAME))}", file=sys.stderr)
        return 2
    tried = [BY_NAME[name] for name in names] or list(MUTATIONS)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        for mutation in tried:
            mutated(mutation, (tree / mutation.file).read_text(encoding="utf-8"))
        if already := red(tree, dict.fromkeys(test for mutation in tried for test in mutation.tests)):
            print("red without any error:", *already, sep="\n  ")
            return 1
        for mutation in tried:
            blind = unnoticed(mutation, tree)
            survived += bool(blind)
            print(
                f"{'SURVIVED' if blind else 'killed'}: {mutation.name}",
                *blind or mutation.tests,
                sep="\n  ",
                flush=True,
            )
    print(f"{len(tried) - survived} of {len(tried)} killed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
