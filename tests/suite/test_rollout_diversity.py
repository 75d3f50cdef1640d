"""How far apart arms' rollouts are: of which images, on what noise, and what is left on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from tiny import Zygote, arguments, job

from algorithms.dance import Dance
from bench.data import of_iteration
from bench.diversity import Stage, leaves, measure, sample, staged
from bench.noise import Noise
from bench.record import read_cell, read_diversity, read_suite
from bench.run import main
from bench.suite import Suite
from bench.worker import Worker
from eval.diversity import kid, median_distance, mmd2
from rewards.shapes import Soft

CPU = torch.device("cpu")


@dataclasses.dataclass
class Scored:
    """Gives an image's training reward as its only feature."""

    texts: list[str]

    def features(self, images: Float[torch.Tensor, "leaf 3 height width"]) -> Float[torch.Tensor, "leaf feature"]:
        return torch.from_numpy(Soft()(images, self.texts, np.zeros(len(images), int)))[:, None]


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def suite(make) -> Suite:
    return make(
        "dance,branch(s=2),dance(tf=0.5)", words=["--seeds", "0,3"], eval_rewards="[soft]", features="tiny-clip"
    )


@pytest.fixture(scope="module")
def found(suite):
    return measure(suite, 2, "cpu", quiet)


def test_the_images_are_those_that_training_starts_from(make, zygote: Zygote):
    suite = make("branch", iterations=1, features="tiny-clip")
    assert zygote.run(job(suite)) == [[0]]
    (cell,) = suite.cells
    (row,) = read_cell(suite.folder / cell.folder).rows
    stage = staged(Worker(suite=suite.folder, device=CPU), [cell], 2, {})
    chosen = of_iteration(stage.prompts, cell.seed, 0, 2)
    texts = [stage.prompts[at] for at in chosen for _ in range(4)]
    watched = Stage(policy=stage.policy, featurizer=Scored(texts), prompts=stage.prompts, condition=stage.condition)
    features, slot = sample(watched, cell, 0, chosen, Noise(seed=cell.seed, iteration=0))
    assert slot.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert features.mean() == pytest.approx(row["reward"]["soft"], abs=1e-6)


def test_a_plan_is_asked_as_training_asks_it_whatever_the_noise(suite, monkeypatch):
    asked, plan = [], Dance.plan

    def heard(self, ctx):
        asked.append((ctx.iteration, ctx.prompts, ctx.seed))
        return plan(self, ctx)

    monkeypatch.setattr(Dance, "plan", heard)
    cell = suite.cells[-1]
    stage = staged(Worker(suite=suite.folder, device=CPU), [cell], 2, {})
    leaves(stage, [cell], [7], 2)
    assert cell.seed == 3
    assert asked == [(at, tuple(of_iteration(stage.prompts, 3, at, 2)), 3) for at in range(2)]


def test_every_iteration_and_seed_adds_its_images(found):
    assert found.result["n"] == 2 * 2 * 2 * 4  # seeds, iterations, prompts, images
    assert [arm["n"] for arm in found.result["arms"]] == [32, 32, 32]
    assert len(found.result["prompts"]) == len(set(found.result["prompts"])) <= 2 * 2 * 2
    assert (found.result["seeds"], found.result["noise_seeds"]) == ([0, 3], [1, 2])


def test_distances_are_from_the_reference_under_other_noise(found):
    bandwidth = median_distance(found.reference)
    assert found.result["bandwidth"] == bandwidth
    for arm, features in zip(found.result["arms"], found.features, strict=True):
        assert arm["kid"] == kid(features, found.reference)
        assert arm["mmd2"] == mmd2(features, found.reference, bandwidth)


def test_the_reference_meets_itself_under_other_noise_and_not_its_own_images(found):
    assert not np.isclose(found.features[0][:, None], found.reference[None], atol=1e-6).all(axis=-1).any()


def test_arms_that_sample_alike_have_the_same_images(found):
    dance, branch, dance_again = found.features
    assert np.array_equal(dance, dance_again)
    assert not np.allclose(dance, branch)


def test_distance_within_a_prompt_is_of_one_rollout(found):
    features = found.features[1].reshape(8, 4, -1)  # seed, iteration and prompt; image
    pairs = [np.linalg.norm(one[i] - one[j]) for one in features for i in range(4) for j in range(i)]
    assert found.result["arms"][1]["spread"] == pytest.approx(np.mean(pairs))


def test_the_record_is_read_back_as_it_was_measured(suite, found):
    back = read_diversity(suite.folder / "diversity")
    assert back is not None
    assert back.result == found.result
    assert np.array_equal(back.reference, found.reference)
    assert all(np.array_equal(a, b) for a, b in zip(back.features, found.features, strict=True))
    assert {path.name for path in (suite.folder / "diversity").iterdir()} == {"result.json", "features.npz"}


def test_a_measurement_cut_short_is_none(suite, found, tmp_path, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = suite.folder / "diversity"
    kept = (folder / "result.json").read_text()
    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(suite, 1, "cpu", quiet)
    assert read_diversity(folder) is None
    (folder / "result.json").write_text(kept)


def test_the_memory_of_a_call_changes_no_image(make, suite, found):
    small = tuple(
        dataclasses.replace(cell, shared=dataclasses.replace(cell.shared, micro_batch=4)) for cell in suite.cells
    )
    other = dataclasses.replace(make("dance"), cells=small)
    assert np.allclose(measure(other, 2, "cpu", quiet).features, found.features, atol=1e-4)


def test_the_command_measures_reports_and_leaves_no_cell(random_flux: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = arguments(random_flux, "dance,branch", changes={"features": "tiny-clip"})
    assert main(["diversity", *words, "--rollouts", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "dance (reference: the floor)" in said
    record = read_suite(Path("runs/tiny"))
    assert record.cells == []
    assert record.diversity is not None
    assert [arm["arm"] for arm in record.diversity.result["arms"]] == ["dance", "branch"]
    assert "Diversity of rollouts" in Path("reports/tiny/index.html").read_text()
    assert json.loads(Path("runs/tiny/diversity/result.json").read_text())["rollouts"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "features="], "names none: --set features=SCORER"),
        (["--rollouts", "0"], "at least one is needed"),
        (["--dry-run"], "unrecognized arguments: --dry-run"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["diversity", "--algos", "dance", *words]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
