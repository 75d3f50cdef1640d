import pytest
from synthetic_suite import BRANCH, DANCE, MIX, NFE, SHARED, write_cell, write_suite

from bench.record import read_suite
from reports.arms import arms
from reports.published import BRANCH_TABLE, PUBLISHED, placed, published_grid
from reports.results import results

FLUX = {**SHARED, "model": "flux-dev", "steps": 20, "group_size": 16, "eta": 0.3}
PAPER_BRANCH = {**BRANCH, "splits": "dense", "eta": 0.3}
PAPER_DANCE = {**DANCE, "eta": 0.3}


def place(tmp_path, arm, algo, algorithm, shared):
    suite = write_suite(tmp_path / "demo", shared=shared)
    write_cell(suite, arm, 0, algo=algo, algorithm=algorithm, shared=shared)
    record = read_suite(suite)
    return [one for one in placed(arms(record), shared) if one.label == arm]


@pytest.mark.parametrize(
    ("algo", "algorithm", "method", "nfe"),
    [
        ("branch", PAPER_BRANCH, "BranchGRPO", ("13.68", "13.68")),
        ("branch", {**PAPER_BRANCH, "splits": [0, 3, 6, 9]}, "BranchGRPO", ("13.68", "13.68")),
        ("branch", {**PAPER_BRANCH, "splits": "sparse"}, "BranchGRPO, sparse splits", ("9.44", "9.44")),
        ("branch", {**PAPER_BRANCH, "depth": True}, "BranchGRPO-DepPru", ("13.68", "8.625")),
        ("branch", {**PAPER_BRANCH, "width": "parent-top1"}, "BranchGRPO-WidPru", ("13.68", "8.625")),
        ("branch", {**PAPER_BRANCH, "mix": True}, "BranchGRPO-Mix", ("13.68", "4.25")),
        ("branch", {**PAPER_BRANCH, "fusion": "uniform"}, "BranchGRPO, uniform fusion", None),
        ("dance", PAPER_DANCE, "DanceGRPO (tf=1.0)", ("20", "20")),
        ("dance", {**PAPER_DANCE, "tf": 0.6}, "DanceGRPO (tf=0.6)", ("20", "12")),
        ("mix", {**MIX, "window": 5}, "MixGRPO (20, 5)", ("20", "5")),
    ],
)
def test_a_published_value_stands_beside_the_arm_that_has_its_settings(tmp_path, algo, algorithm, method, nfe):
    (one,) = place(tmp_path, "some-label", algo, algorithm, FLUX)
    assert (one.row.method, one.row.nfe, one.differences) == (method, nfe, ())


@pytest.mark.parametrize(
    ("algo", "algorithm", "shared", "method", "differences"),
    [
        ("branch", PAPER_BRANCH, {**FLUX, "steps": 16}, "BranchGRPO", ["steps 16, published 20"]),
        ("branch", {**PAPER_BRANCH, "s": 2.0}, FLUX, "BranchGRPO", ["s 2.0, published 4.0"]),
        ("mix", MIX, FLUX, "MixGRPO (20, 5)", ["window 4, published 5"]),
        (
            "dance",
            {**DANCE, "eta": 1.0},
            SHARED,
            "DanceGRPO (tf=1.0)",
            ["model tiny-flux, published FLUX.1-dev", "steps 10, published 20", "eta 1.0, published 0.3"],
        ),
    ],
)
def test_else_the_nearest_is_named_with_what_differs(tmp_path, algo, algorithm, shared, method, differences):
    (one,) = place(tmp_path, "some-label", algo, algorithm, shared)
    assert (one.row.method, list(one.differences)) == (method, differences)


def test_the_papers_value_is_only_nearest_to_the_official_code_which_has_other_settings(tmp_path):
    official = {"splits": [0, 3, 6, 9], "factor": 2, "noise": 4.0, "width": "none", "mix": False, "kernel": "dance_sde"}
    (one,) = place(tmp_path, "branch-official", "branch", {**official, "eta": 0.3}, FLUX)
    assert one.row.method == "BranchGRPO"
    assert one.differences[0] == "s unknown, published 4.0"
    assert {text.split()[0] for text in one.differences} == {"s", "fusion", "beta", "credit_by", "depth"}


def test_a_local_copy_of_the_model_is_the_model(tmp_path):
    (one,) = place(tmp_path, "dance", "dance", PAPER_DANCE, {**FLUX, "model": "/models/FLUX.1-dev"})
    assert not one.differences


def test_a_setting_that_is_not_recorded_is_not_taken_for_the_published_one(tmp_path):
    algorithm = {key: value for key, value in PAPER_BRANCH.items() if key != "s"}
    (one,) = place(tmp_path, "branch", "branch", algorithm, FLUX)
    assert one.differences == ("s unknown, published 4.0",)


def test_the_two_tables_share_the_rows_and_show_our_cost_beside_the_published(tmp_path):
    suite = write_suite(tmp_path / "demo", shared=FLUX)
    write_cell(suite, "branch", 0, algo="branch", algorithm=PAPER_BRANCH, shared=FLUX)
    write_cell(suite, "branch-s2", 0, algo="branch", algorithm={**PAPER_BRANCH, "s": 2.0}, shared=FLUX)
    record = read_suite(suite)
    rows = placed(arms(record), FLUX)
    ours = {line.label: line for line in results(record).lines}
    exact, nearest = (published_grid(rows, ours, nearest=flag) for flag in (False, True))
    assert [row[0].text for row in exact.rows] == ["base model", "branch"]
    assert [row[0].text for row in nearest.rows] == ["branch-s2"]
    titles = [f"{column.group} {column.title}".strip() for column in exact.columns]
    shown = dict(zip(titles, (cell.text for cell in exact.rows[1]), strict=True))
    assert shown["NFE rollout, paper's definition published"] == "13.68"
    assert shown["NFE rollout, paper's definition ours"] == str(NFE["rollout"]["paper"])
    assert shown["NFE update, edges ours"] == str(NFE["update"]["edges"])
    assert shown["published score HPS v2.1"] == "0.363"


def test_the_published_numbers_follow_from_the_method_where_the_notes_say_so():
    """A path of 20 steps that doubles at four of them: level sizes, then the papers' arithmetic."""
    edges = {
        splits: [2 ** sum(split <= step for split in splits) for step in range(20)]
        for splits in ((0, 3, 6, 9), (0, 4, 8, 12), (0, 5, 10, 15))
    }
    nodes = {splits: (1 + sum(levels)) / 16 for splits, levels in edges.items()}
    assert list(nodes.values()) == [13.6875, 11.5625, 9.4375]
    dense = edges[0, 3, 6, 9]
    assert (sum(dense[:10]) + sum(dense[10:]) / 2) / 16 == 8.625
    assert (sum(dense[:10]) + sum(dense[10:19]) / 2 + 0) / 16 == pytest.approx(8.125)
    assert (sum(dense[:19]) - sum(dense[10:14])) / 16 == 8.625
    windows = [sum(dense[k] for k in {0, 3, 6, 9} | set(range(start, start + 4))) for start in range(17)]
    assert windows[0] / 16 == 2.125
    assert 68 not in windows


def test_the_branch_papers_table_is_whole():
    rows = [row for row in PUBLISHED if row.source == BRANCH_TABLE]
    assert [row.seconds for row in rows] == [None, 698, 469, 289, 493, 314, 314, 148]
    assert all(set(row.scores) == {"HPS v2.1", "PickScore ÷ 100", "ImageReward", "UnifiedReward"} for row in rows)
    (mix,) = (row for row in rows if row.method == "BranchGRPO-Mix")
    assert "cannot be derived" in mix.note
