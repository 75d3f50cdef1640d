"""Suites on tiny Wan models: videos are rolled out, scored, trained, judged, shown and resumed as images are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import Zygote, arguments, facts, job, written

from bench.arguments import make_suite, run_parser
from bench.embedded import world
from bench.record import read_suite
from bench.registry import InputError
from bench.suite import Suite

pytestmark = pytest.mark.slow

REWARD = '''
from typing import ClassVar

from bench.contract import RewardInfo


class Warming:
    """How much redder videos end than they start."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="none", low=-1.0, high=1.0, higher_is_better=True, revision="1", reference="a test", media="video"
    )

    def __call__(self, images, prompts, group):
        assert images.shape[1:] == (9, 3, 16, 16), images.shape
        red = images[:, :, 0].mean((-1, -2))
        return (red[:, -1] - red[:, 0]).double().cpu().numpy()

    def features(self, images):
        return images.mean((-1, -2)).flatten(1)


REWARDS = {"warming": Warming}
'''
VIDEOS = {
    "resolution": 16,
    "frames": 9,
    "guidance": 3.0,
    "iterations": 3,
    "features": "warming",
    "eval_rewards": "[warming]",
    "eval_prompts": 2,
    "eval_samples": 2,
    "micro_batch": 4,
}
ARMS = ("dance", "mix", "branch")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "warming.py"
    path.write_text(REWARD)
    return str(path)


@pytest.fixture(scope="module")
def words(random_wan: Path, reward: str) -> Callable[..., list[str]]:
    """`words("dance", steps=4)` are those of a run on a tiny text-to-video model."""

    def said(algos: str, *more: str, model: Path = random_wan, **changes: Any) -> list[str]:
        return arguments(model, algos, "warming", ["--plugin", reward, *more], VIDEOS | changes)

    return said


@pytest.fixture(scope="module")
def make(words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Suite]:
    return lambda algos, **changes: written(words(algos, **changes), tmp_path_factory.mktemp("runs"))


def command(folder: Path, verb: str, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", verb, *said], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def run(words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three arms through the command line, and of their rollouts' diversity."""
    folder = tmp_path_factory.mktemp("work")
    command(folder, "run", words(",".join(ARMS), "--jobs", "1"))
    command(folder, "diversity", [*words("dance,branch"), "--rollouts", "1"])
    return folder


def test_three_arms_train_a_model_of_videos(run):
    suite = read_suite(run / "runs" / "tiny")
    assert sorted(cell.config["arm"] for cell in suite.cells) == sorted(ARMS)
    for cell in suite.cells:
        assert cell.result is not None
        assert cell.result["failed"] == 0
        assert [row["samples"] for row in cell.rows] == [8, 8, 8]
        assert all(row["grad_norm"] > 0 for row in cell.rows)
        assert all(row["drift"] is not None and row["drift"] < 1e-5 for row in cell.rows)
        assert cell.result["drift"]["n"] == 4
        assert cell.result["drift"]["kid"] is not None


def test_both_halves_of_guidance_are_counted(run):
    cells = {cell.config["arm"]: cell for cell in read_suite(run / "runs" / "tiny").cells}
    # Two prompts: a root, then four images, of 5 steps; the first three are trained, the first by its one parent.
    assert cells["dance"].rows[0]["calls"] == {
        "rollout": 2 * 2 * (1 + 4 * 4),
        "update": 2 * 2 * (1 + 4 * 2),
        "anchor": 0,
    }


def test_samples_are_animations_and_the_report_shows_them(run):
    shown = sorted((run / "runs" / "tiny").glob("*/samples/**/*.png"))
    assert shown
    for path in shown:
        with Image.open(path) as image:
            assert (image.format, image.size, getattr(image, "n_frames", 1)) == ("PNG", (16, 16), 9)
    page = next((run / "reports" / "tiny").glob("*.html")).read_text()
    assert "data:image/png;base64," in page


def test_the_diversity_of_rollouts_is_that_of_videos(run):
    found = read_suite(run / "runs" / "tiny").diversity
    assert found is not None
    assert [(arm["arm"], arm["n"]) for arm in found.result["arms"]] == [("dance", 8), ("branch", 8)]


def test_a_killed_cell_of_videos_ends_as_an_uninterrupted_one(make, zygote: Zygote):
    whole, again, killed = (make("dance", ema=0.9, iterations=3) for _ in range(3))
    codes = zygote.run(job(whole), job(again), job(killed, die=("between_iterations", 3)), job(killed))
    assert codes == [[0], [0], [-9], [0]]
    assert facts(killed) == facts(whole) == facts(again)


def test_two_processes_come_to_what_one_comes_to(make, zygote: Zygote):
    one, two = make("dance"), make("dance")
    assert zygote.run(job(one), job(two, processes=2, parallel="ddp")) == [[0], [0, 0]]
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        assert mine["reward_total"] == pytest.approx(theirs["reward_total"], abs=1e-4)
        assert mine["calls"] == theirs["calls"]
    assert rows(two)[0]["grad_norm"] == pytest.approx(rows(one)[0]["grad_norm"], rel=1e-5)


def test_how_many_videos_a_call_has_changes_rounding_alone(make, zygote: Zygote):
    many, few = make("branch", micro_batch=8), make("branch", micro_batch=1)
    assert zygote.run(job(many), job(few)) == [[0], [0]]
    for mine, theirs in zip(rows(many), rows(few), strict=True):
        assert mine["reward_total"] == pytest.approx(theirs["reward_total"], abs=1e-4)
        assert mine["calls"] == theirs["calls"]


def test_adapters_and_recomputed_activations_train_on_videos(make, zygote: Zygote):
    suite = make("dance", lora_rank=2, gradient_checkpointing=True, precision="bf16", frozen="bf16")
    assert zygote.run(job(suite)) == [[0]]
    assert next((suite.folder / suite.cells[0].folder / "lora").glob("*.safetensors")).stat().st_size
    assert all(row["grad_norm"] > 0 for row in rows(suite))


def rows(suite: Suite) -> list[dict[str, Any]]:
    lines = (suite.folder / suite.cells[0].folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with a first frame each, as JSON lines."""
    folder = tmp_path_factory.mktemp("pictured")
    (folder / "frames").mkdir()
    lines = []
    for number, prompt in enumerate(world.prompts("train")[:60]):
        image = f"frames/{number:02d}.png"
        Image.fromarray(np.full((24, 20, 3), 4 * number, np.uint8)).save(folder / image)
        lines.append(json.dumps({"prompt": prompt, "image": image}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "prompts.jsonl"


def test_three_arms_train_a_model_of_videos_that_start_from_a_frame(words, random_wan_i2v, pictured, tmp_path):
    command(tmp_path, "run", words(",".join(ARMS), "--jobs", "1", "--prompts", str(pictured), model=random_wan_i2v))
    suite = read_suite(tmp_path / "runs" / "tiny")
    assert len(suite.cells) == len(ARMS)
    for cell in suite.cells:
        assert cell.result is not None
        assert cell.result["failed"] == 0
        assert all(row["grad_norm"] > 0 for row in cell.rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 10}, "frames=10: this model makes videos of 4k[+]1 frames; the nearest is 9"),
        ({"resolution": 20}, "resolution=20: .*multiples of 8"),
        ({"eval_rewards": "[soft]"}, "'soft' scores images, and the model makes videos"),
    ],
)
def test_what_does_not_fit_videos_is_refused_before_anything_runs(words, changes, said):
    with pytest.raises(InputError, match=said):
        make_suite(run_parser().parse_args(words("dance", **changes)))


def test_a_scorer_of_videos_is_refused_where_the_model_makes_images(words, random_flux):
    given = words("dance", model=random_flux, frames=1)
    with pytest.raises(InputError, match="'warming' scores videos, and the model makes images"):
        make_suite(run_parser().parse_args(given))


def test_videos_that_start_from_a_frame_need_prompts_with_one(words, random_wan_i2v):
    with pytest.raises(InputError, match="a first frame: --prompts needs a column `image`"):
        make_suite(run_parser().parse_args(words("dance", model=random_wan_i2v)))
