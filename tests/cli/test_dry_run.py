"""`--dry-run` says what a suite will cost and where its arms differ, and computes nothing."""

from __future__ import annotations

import json

import pytest

PAPER = ["--preset", "paper", "--model", "tiny-flux", "--dry-run", "--iterations", "1"]
# DESIGN section 4, T 20 and G 16: rollout paper, edges, calls; update edges, calls.
COST = {
    "dance": (20, 20, 19.0625, 19, 18.0625),
    "branch": (13.6875, 13.625, 12.6875, 12.625, 11.6875),
    "branch(splits=mixed)": (11.5625, 11.5, 10.5625, 10.5, 9.5625),
    "branch(splits=sparse)": (9.4375, 9.375, 8.4375, 8.375, 7.4375),
    "branch-widpru": (13.6875, 13.625, 12.6875, 8.125, 7.1875),
    "branch-deppru": (13.6875, 13.625, 12.6875, 8.625, 7.6875),
    "branch-mix": (13.6875, 13.625, 12.6875, 2.125, 1.1875),
    "mix": (20, 20, 19.0625, 4, 3.0625),
}


@pytest.fixture
def preview(call):
    def previewing(*words: str) -> dict:
        answer = call([*words, "--json"])
        assert (answer.status, answer.err) == (0, "")
        return json.loads(answer.out)

    return previewing


@pytest.mark.parametrize("arm", COST)
def test_cost_of_each_arm_at_20_steps_and_16_images(arm, preview):
    (cell,) = preview("--algos", arm, *PAPER)["cells"]

    rollout, update = cell["nfe"]["rollout"], cell["nfe"]["update"]
    numbers = (rollout["paper"], rollout["edges"], rollout["calls"], update["edges"], update["calls"])
    assert numbers == COST[arm]
    assert cell["leaves"] == 16


def test_keys_of_a_cell(preview):
    found = preview("--algos", "dance,branch-mix", "--seeds", "0,7", *PAPER)

    assert [(cell["arm"], cell["algo"], cell["seed"]) for cell in found["cells"]] == [
        ("dance", "dance", 0),
        ("branch-mix", "branch-mix", 0),
        ("dance", "dance", 7),
        ("branch-mix", "branch-mix", 7),
    ]
    assert len({cell["hash"] for cell in found["cells"]}) == 4
    assert set(found["cells"][0]) == {"arm", "algo", "seed", "hash", "leaves", "nfe", "seconds_per_iteration"}
    assert set(found["cells"][0]["nfe"]["rollout"]) == {"paper", "edges", "calls"}
    assert set(found["cells"][0]["nfe"]["update"]) == {"edges", "calls"}


def test_where_a_window_moves_the_cost_is_the_mean_over_the_planned_iterations(preview):
    def edges(iterations: int) -> float:
        words = ["--algos", "mix(tau=1,window=2)", *PAPER, "--iterations", str(iterations)]
        return preview(*words)["cells"][0]["nfe"]["rollout"]["edges"]

    # The prefix before the window runs once for 16 images.
    assert [edges(1), edges(2), edges(3)] == pytest.approx([20, 20 - 15 / 32, 20 - 15 / 16])


def test_the_difference_between_arms_is_named_and_nothing_else(preview):
    same = preview("--algos", "dance,branch", *PAPER)
    other = preview("--algos", "dance(eta=0.2),branch,mix", *PAPER)

    assert same["config_diff"] == {}
    assert other["config_diff"] == {
        "kernel": {"dance(eta=0.2)": "dance_sde", "branch": "dance_sde", "mix": "flow_sde"},
        "eta": {"dance(eta=0.2)": 0.2, "branch": 0.3, "mix": 0.7},
    }


def test_a_hash_names_what_decides_the_numbers(preview):
    def hashed(*words: str) -> str:
        return preview("--algos", "dance", *PAPER, *words)["cells"][0]["hash"]

    base = hashed()
    assert hashed("--set", "lr=2e-5") != base
    assert hashed("--seeds", "1") != base
    assert hashed("--set", "dance.tf=0.5") != base
    assert hashed("--suite", "other", "--out", "elsewhere", "--jobs", "3", "--device", "cpu") == base


def test_a_prompts_file_counts_by_its_contents(preview, files, tmp_path):
    def hashed(path) -> str:
        return preview("--algos", "dance", *PAPER, "--prompts", str(path))["cells"][0]["hash"]

    (tmp_path / "copy.txt").write_text((files / "prompts.txt").read_text())
    (tmp_path / "marked.txt").write_text((files / "prompts.txt").read_text(), encoding="utf-8-sig")
    (tmp_path / "other.txt").write_text((files / "prompts.txt").read_text().replace("cats", "dogs"))

    assert hashed(tmp_path / "copy.txt") == hashed(files / "prompts.txt")
    assert hashed(tmp_path / "marked.txt") == hashed(files / "prompts.txt")
    assert hashed(tmp_path / "other.txt") != hashed(files / "prompts.txt")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(preview, tmp_path):
    (tmp_path / "mine.yaml").write_text("steps: 12\nlr: 1e-3\nmodel: tiny-flux\npreset: smoke\nbranch: {s: 2.0}\n")

    (cell,) = preview("--algos", "branch", "--config", "mine.yaml", "--set", "steps=14", "--dry-run")["cells"]
    (arm,) = preview("--algos", "branch(s=3.0)", "--config", "mine.yaml", "--set", "steps=14", "--dry-run")["cells"]

    assert cell["nfe"]["rollout"]["paper"] == 5.9375 + 6  # 8 steps of the preset, 6 chains of 16 more
    assert arm["hash"] != cell["hash"]


def test_the_text_says_the_same(call):
    answer = call(["--algos", "dance,branch", *PAPER])

    assert answer.status == 0
    lines = answer.out.splitlines()
    assert "preset paper: 2 cells to run" in lines[0]
    dance = next(line.split() for line in lines if line.startswith("dance"))
    assert dance[:8] == ["dance", "0", "16", "20", "20", "19.0625", "19", "18.0625"]
    assert lines[-1].strip() == "none"


def test_nothing_is_written(call, tmp_path):
    call(["--algos", "dance", *PAPER])
    assert list(tmp_path.iterdir()) == []


def test_an_algorithm_of_a_plugin_is_previewed(preview, files):
    found = preview("--algos", "dance,my-dance", "--plugin", str(files / "plugin.py"), *PAPER)

    assert [cell["nfe"]["update"]["edges"] for cell in found["cells"]] == [19, 9]
