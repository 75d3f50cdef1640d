"""Scorers with options, scorers that move house, and scorers that are away for a while, in runs of a tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from tiny import Zygote, facts, job

from bench.scorers import tiny as tiny_scorers
from bench.suite import Suite, failures
from reports.build import build

AWAY = """
from pathlib import Path
from bench.contract import RewardInfo, UnavailableError


class Red:
    \"\"\"Is there only while its file is.\"\"\"

    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")
    calls = 0

    def __call__(self, images, prompts, group):
        self.calls += 1
        if self.calls > 4 and not Path(__file__).with_name("open").exists():
            raise UnavailableError("closed for lunch")
        return images[:, 0].flatten(1).mean(1).double().numpy()


REWARDS = {"red": Red}
"""
OPTIONS = "hpsv2.1(weights={},antialias=false,batch=3)"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hps")
    tiny_scorers.make("hpsv2.1", folder)
    return folder


def cell(suite: Suite) -> Path:
    return suite.folder / suite.cells[0].folder


def test_records_name_the_options_that_move_scores_and_no_folder(make, zygote: Zygote, weights):
    suite = make(rewards=f"{OPTIONS.format(weights)}:0.25,soft:0.75", iterations=1, eval_rewards="[soft]")
    assert zygote.run(job(suite)) == [[0]]
    label = "hpsv2.1(antialias=false)"
    assert suite.shared.rewards == (f"{label}:0.25", "soft:0.75")
    assert suite.shared.eval_rewards == (label, "soft")
    found = facts(suite)
    assert set(found["rows"][0]["reward"]) == {label, "soft"}
    assert found["result"]["units"][label]["preprocessing"].count("without antialias") == 1
    assert str(weights) not in str(found["result"])
    config = yaml.safe_load((cell(suite) / "config.yaml").read_text())
    assert config["scorers"] == {label: OPTIONS.format(weights)}


def test_a_scorer_whose_folder_moved_is_the_same_and_one_with_other_weights_is_another(make, weights, tmp_path):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(weights, moved)
    tiny_scorers.make("hpsv2.1", other, seed=1)
    here, there, new = (make(rewards=OPTIONS.format(folder)) for folder in (weights, moved, other))
    assert here.cells[0].hash == there.cells[0].hash
    assert here.cells[0].hash != new.cells[0].hash


def test_a_scorer_that_goes_away_stops_the_cell_which_then_goes_on_to_the_same_records(make, zygote: Zygote, tmp_path):
    (tmp_path / "plugin.py").write_text(AWAY)
    words = ["--plugin", str(tmp_path / "plugin.py")]
    options = {"iterations": 4, "eval_rewards": "[soft]", "micro_batch": 8, "checkpoint_every": 3}
    (tmp_path / "open").touch()
    whole, broken = (make(rewards="red", words=words, **options) for _ in range(2))
    assert zygote.run(job(whole)) == [[0]]
    (tmp_path / "open").unlink()

    assert zygote.run(job(broken)) == [[1]]

    assert "closed for lunch" in failures(broken)["dance seed 0"]
    saved = sorted(path.name for path in (cell(broken) / "checkpoints").glob("*.pt"))
    lines = (cell(broken) / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 4
    assert saved[-1] == f"{len(lines):06d}.pt", "nothing that was learned is lost"
    (tmp_path / "open").touch()
    assert zygote.run(job(broken)) == [[0]]
    assert facts(broken) == facts(whole)


def test_a_run_with_a_scorer_whose_range_has_no_end_finishes_and_is_reported(make, zygote: Zygote, tmp_path):
    (tmp_path / "plugin.py").write_text(AWAY.replace("high=1.0", 'high=float("inf")'))
    (tmp_path / "open").touch()
    words = ["--plugin", str(tmp_path / "plugin.py")]
    suite = make(rewards="red", words=words, iterations=1, eval_rewards="[soft]")
    assert zygote.run(job(suite)) == [[0]]
    assert facts(suite)["result"]["units"]["red"]["high"] is None
    table = build(suite.folder, tmp_path / "reports").folder / "table.md"
    assert "; 0 to –; higher is better" in table.read_text()


def test_trackers_are_told_of_options_in_characters_that_all_of_them_take(make, zygote: Zygote, weights):
    suite = make(rewards=OPTIONS.format(weights), iterations=1, eval_rewards="[soft]")
    assert zygote.run(job(suite, trackers=["mlflow"])) == [[0]]
