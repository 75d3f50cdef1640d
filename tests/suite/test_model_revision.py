"""The commit of a model from the hub is in the record of every cell that was trained from it."""

from __future__ import annotations

import json
import shutil

import torch
from tiny import arguments, written

from bench.worker import Worker, work

COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_a_cell_records_the_commit_of_its_model_and_random_weights_leave_none_behind(random_flux, tmp_path):
    folder = tmp_path / "snapshots" / COMMIT
    shutil.copytree(random_flux, folder)
    suite = written(
        arguments(folder, "dance", "random", changes={"model.weights": "random", "eval_rewards": "[random]"}),
        tmp_path / "runs",
    )
    name = suite.cells[0].folder
    assert work(Worker(suite=suite.folder, device=torch.device("cpu")), [name]) == 0
    assert json.loads((suite.folder / name / "environment.json").read_text())["model_revision"] == COMMIT
    assert (suite.folder / name / "DONE").is_file()
    assert not (suite.folder / name / "pipeline").exists()
