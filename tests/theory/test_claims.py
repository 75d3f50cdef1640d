"""The table: what agrees, what is said of it, and that every row would notice an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.noise import Noise
from bench.plan import Plan
from bench.run import main
from bench.theory import baseline, fusion, marginals, table
from bench.theory.claim import Claim

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "theory.md"
REMEDY = "docs/theory.md is out of date: run `bench theory --markdown > docs/theory.md`"
DRAWS = 1000
CLAIM = Claim(
    source="lemma", name="x", statement="", condition="here", claimed=1.0, expected=1.0, measured=1.1, tolerance=0.2
)
Rows = Sequence[Claim]


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return table.all_claims(DRAWS, seed=1)


def test_every_simulation_confirms_its_closed_form(claims):
    assert [(c.source, c.name) for c in claims if not c.agrees] == []


def test_the_page_has_the_closed_forms_and_verdicts_of_the_code(claims):
    cells = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    written = [(row[0], row[1], row[2], row[5]) for row in cells if row[0] != "| what"]
    code = [table.row(claim).split(" | ") for claim in claims]
    assert written == [(row[0], row[1], row[2], row[5]) for row in code], REMEDY


def test_the_pages_words_are_the_codes(claims):
    text = PAGE.read_text(encoding="utf-8")
    for part in (table.INTRO, table.READING, *(f"*{claim.statement}*" for claim in claims)):
        assert part in text, REMEDY


def test_the_table_fits_a_terminal_of_120_columns_and_names_a_row_once(claims):
    assert max(map(len, table.plain(claims).splitlines())) <= 120
    assert len({(c.source, c.name) for c in claims}) == len(claims)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "holds: here"),
        ({"claimed": 0.9}, "does not hold: here"),
        ({"claimed": 1.2}, "does not hold: here"),
        ({"claimed": 1.2, "relation": "at most"}, "holds: here"),
        ({"claimed": 0.9, "relation": "at most"}, "does not hold: here"),
        ({"measured": 1.3}, "open: simulation and closed form differ"),
        ({"measured": math.nan}, "open: simulation and closed form differ"),
    ],
)
def test_a_verdict_compares_the_closed_form_with_the_claim_once_the_simulation_confirms_it(change, verdict):
    assert replace(CLAIM, **change).verdict == verdict


def test_a_number_that_rounds_to_nothing_has_no_sign():
    assert [table.number(x) for x in (-1e-17, -0.25, 1.0)] == ["0.0000", "-0.2500", "1.0000"]


def found(claims: Rows, source: str) -> dict[str, str]:
    return {c.name: c.verdict.partition(":")[0] for c in claims if c.source == source}


def test_what_holds_and_what_does_not(claims):
    yes, no = "holds", "does not hold"
    for source in ("lemma 1", "lemma 2", "theorem 1", "eq. (4)"):
        assert set(found(claims, source).values()) == {yes}
    for source in ("leaves jointly", "official split noise"):
        assert set(found(claims, source).values()) == {no}
    assert list(found(claims, "eq. (9)").values()) == [yes, yes, yes, yes, no, no]
    assert list(found(claims, "eq. (3)").values()) == [no, no, no, no, yes]
    assert list(found(claims, "eq. (10)").values()) == [no, no, no, yes, no, yes]


def uncoupled(plan: Plan) -> Plan:
    return replace(plan, coupling=np.zeros(len(plan.tree)))


def wider(plan: Plan) -> Plan:
    return replace(plan, noise_scale=1.5 * plan.noise_scale)


def rolled_out_as(wrong: Callable[[Plan], Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rollouts follow another plan than the closed forms do."""
    honest = marginals.sampled
    monkeypatch.setattr(marginals, "sampled", lambda data, plan, **more: honest(data, wrong(plan), **more))


def red(rows: Rows) -> list[bool]:
    return [not row.agrees for row in rows]


@pytest.mark.parametrize("kernel", marginals.SAMPLERS)
def test_noise_of_another_std_turns_lemma_2_and_theorem_1_red(kernel, monkeypatch):
    rolled_out_as(wider, monkeypatch)
    tree = marginals.tree_of(kernel)
    assert red([marginals.lemma_2(tree, 20_000, 0), marginals.theorem_1(tree, 20_000, 0)[1]]) == [True, True]


def test_noise_of_another_std_turns_the_log_prob_of_splits_red(monkeypatch):
    rolled_out_as(wider, monkeypatch)
    tree = marginals.tree_of("dance_sde")
    assert red([marginals.split_log_prob(plan, 20_000, 0) for plan in (tree, marginals.official(tree))]) == [True] * 2


def test_siblings_that_share_nothing_turn_the_leaves_covariance_red(monkeypatch):
    tree = marginals.tree_of("flow_sde")
    coupled = replace(tree, coupling=np.where(tree.coupling > 0, 0.5, 0.0))
    assert marginals.shared_path(coupled, (0, 1), 20_000, 0).agrees
    rolled_out_as(uncoupled, monkeypatch)
    assert not marginals.shared_path(coupled, (0, 1), 20_000, 0).agrees


@pytest.mark.parametrize(
    ("mixed", "expected"),
    [
        (lambda xi, own: own, [False, False, True]),  # no shared part
        (lambda xi, own: 1.2 * xi, [True, True, False]),  # eq. (2) without its normaliser
        (lambda xi, own: np.sign(xi) * np.sqrt(np.abs(xi) * 0.9), [True, True, False]),  # no normal
    ],
)
def test_noise_that_is_not_equation_twos_turns_lemma_1_red(mixed, expected, monkeypatch):
    honest = Noise.edges

    def edges(self: Noise, tree: Any, node: Any, coupling: Any, shape: Any) -> np.ndarray:
        own = honest(self, tree, node, np.zeros_like(coupling), shape)
        return mixed(honest(self, tree, node, coupling, shape), own).astype(np.float32)

    monkeypatch.setattr(Noise, "edges", edges)
    assert red(marginals.lemma_1(20_000, 0)) == expected


def fused_as(wrong: Callable[..., np.ndarray], module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module.fuse
    monkeypatch.setattr(module, "fuse", lambda *args: wrong(honest, *args))


def test_a_fusion_that_is_no_mean_of_the_leaves_turns_equation_nine_red(monkeypatch):
    fused_as(lambda fuse, tree, leaf, r: fuse(tree, leaf, r, 3.0 * leaf), fusion, monkeypatch)
    assert all(red([fusion.uniform(*tree, DRAWS, 0)[1] for tree in fusion.TREES]))


def test_a_biased_fusion_turns_equation_nine_red(monkeypatch):
    fused_as(lambda fuse, tree, leaf, r: fuse(tree, leaf, r) + 0.5, fusion, monkeypatch)
    assert all(red([fusion.uniform(*tree, DRAWS, 0)[0] for tree in fusion.TREES]))


def test_weights_that_are_dropped_turn_equation_three_red(monkeypatch):
    fused_as(lambda fuse, tree, leaf, r, log_weight: fuse(tree, leaf, r), fusion, monkeypatch)
    rows = fusion.path_weighted(DRAWS, 0)
    assert [row.name for row in rows if row.agrees] == ["path weights, many leaves, D = 64"]  # barely weighted at all


def test_an_advantage_of_another_size_turns_equation_ten_red(monkeypatch):
    fused_as(lambda fuse, tree, leaf, r: 1.5 * fuse(tree, leaf, r), baseline, monkeypatch)
    rows = [row for row in baseline.claims(8 * DRAWS, 0) if row.source == "eq. (10)"]
    assert red(rows) == [True] * 6


def test_siblings_that_share_nothing_turn_the_sibling_baselines_mean_red(monkeypatch):
    honest = Noise.edges
    monkeypatch.setattr(Noise, "edges", lambda self, tree, node, rho, shape: honest(self, tree, node, 0 * rho, shape))
    assert not baseline.expectation(2, 4.0, 20 * DRAWS, 0, leave_one_out=False).agrees
    assert not baseline.expectation(2, 4.0, 20 * DRAWS, 0, leave_one_out=True).agrees


def test_credit_that_is_not_normalised_per_depth_turns_equation_four_red(monkeypatch):
    honest = baseline.branch()
    monkeypatch.setattr(baseline, "branch", lambda: replace(honest, credit_by="leaf"))
    assert not baseline.two_siblings(0).agrees


@pytest.mark.parametrize(("dims", "power"), [(1, 1.0), (1, 3.0), (3, 0.5)])
def test_the_mean_of_two_self_normalised_leaves_is_the_double_integral(dims, power):
    q = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, dims)
    one, other = np.meshgrid(q, q)
    expected = 2 * (one / (1 + np.exp(power * (one - other) / 2))).mean() / dims
    assert fusion.self_normalised(2, dims, power) == pytest.approx(expected, abs=1e-3)


def test_self_normalised_weights_are_a_mean_without_power_and_reach_their_limit_with_many_leaves():
    assert fusion.self_normalised(5, 3, 0.0) == pytest.approx(1)
    assert fusion.self_normalised(1, 1, 2.0) == pytest.approx(1, abs=1e-4)
    assert fusion.self_normalised(4000, 1, 1.0) == pytest.approx(1 / 2, abs=1e-3)


def test_the_command_prints_the_table(monkeypatch, capsys, claims):
    monkeypatch.setattr(table, "all_claims", lambda draws, seed: claims)
    assert main(["theory"]) == 0
    assert capsys.readouterr().out == table.plain(claims) + "\n"
    assert main(["theory", "--markdown"]) == 0
    assert capsys.readouterr().out == table.markdown(claims) + "\n"


def test_the_command_fails_where_a_simulation_and_its_closed_form_differ(monkeypatch, capsys):
    monkeypatch.setattr(table, "all_claims", lambda draws, seed: [CLAIM, replace(CLAIM, measured=2.0)])
    assert main(["theory"]) == 1
    assert "open: simulation and closed form differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--draws", "10"], "at least 1000"),
        (["--seed", "-1"], "from 0 on"),
        (["--seed", str(2**63)], "below 2**63"),
        (["--draws", "many"], "invalid int value"),
    ],
)
def test_numbers_that_no_table_can_be_made_of_are_refused(words, says, capsys):
    assert main(["theory", *words]) == 2
    assert says in capsys.readouterr().err
