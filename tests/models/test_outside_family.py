"""A family in a file of somebody else's: `--plugin dots.py` is all that it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import arguments, written

from bench.preview import planned
from bench.record import read_result
from bench.worker import Worker, work

DOTS = '''
from pathlib import Path
import torch
from bench.models.catalog import Family
from bench.policy import Build


class Dots:
    """Pixels as latents and a 1x1 convolution for a model, guided by a scale."""

    def __init__(self, folder: Path, build: Build):
        self.model = torch.nn.Conv2d(4, 3, 1)
        torch.nn.init.constant_(self.model.weight, float((folder / "net" / "weight").read_text()))
        torch.nn.init.zeros_(self.model.bias)
        self.model.to(build.device)
        self.device, self.guidance = build.device, build.guidance
        self.calls_per_velocity = 2 if build.guidance > 1 else 1
        self.latent_shape = (3, build.height, build.width)

    def encoder(self):
        return lambda prompt, image: (torch.tensor([len(prompt) / 50.0]),)

    def velocity(self, x, sigma, condition):
        told = condition.tensors[0].view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        velocity = self.model(torch.cat([x, told], dim=1))
        if self.calls_per_velocity == 1:
            return velocity
        other = condition.negative[0].view(1, 1, 1, 1).expand_as(told)
        away = self.model(torch.cat([x, other], dim=1))
        return away + self.guidance * (velocity - away)

    def decode(self, x0):
        return (x0 / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path):
        folder.mkdir(parents=True)
        torch.save(self.model.state_dict(), folder / "net.pt")


FAMILIES = {"DotsPipeline": Family(adapter=f"{__name__}:Dots", classifier_free=True)}
'''


@pytest.fixture
def dots(tmp_path: Path) -> tuple[Path, Path]:
    """The plugin, and a model of its family."""
    plugin, folder = tmp_path / "dots.py", tmp_path / "dots"
    plugin.write_text(DOTS)
    (folder / "net").mkdir(parents=True)
    (folder / "net" / "weight").write_text("0.1")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DotsPipeline", "net": ["torch", "Conv2d"]}))
    return plugin, folder


def calls_of(plugin: Path, folder: Path, out: Path, guidance: float) -> list[dict[str, float]]:
    """Run three arms on the model; return the rollout and update calls that their rows count."""
    change = {
        "guidance": guidance,
        "resolution": "[16,24]",
        "eval_rewards": "[random]",
        "features": "",
        "iterations": 2,
    }
    words = arguments(folder, "dance,mix,branch", "random", ["--plugin", str(plugin)], change)
    suite = written(words, out)
    assert work(Worker(suite=suite.folder, device=torch.device("cpu")), [cell.folder for cell in suite.cells]) == 0
    assert all((suite.folder / cell.folder / "pipeline" / "net.pt").is_file() for cell in suite.cells)
    rows = [read_result(suite.folder / cell.folder / "result.json")["nfe"] for cell in suite.cells]
    planned_calls = [planned(cell).cost.nested() for cell in suite.cells]
    assert [row["rollout"] for row in rows] == [cost["rollout"] for cost in planned_calls]
    return [{"rollout": row["rollout"]["calls"], "update": row["update"]["calls"]} for row in rows]


def test_a_family_of_another_file_is_trained_and_its_guided_calls_are_counted_twice(dots, tmp_path):
    plugin, folder = dots
    guided = calls_of(plugin, folder, tmp_path / "guided", 3.0)
    plain = calls_of(plugin, folder, tmp_path / "plain", 1.0)
    assert guided == [{kind: 2 * calls for kind, calls in cell.items()} for cell in plain]
