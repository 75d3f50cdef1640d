from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.embedded import world
from bench.embedded.training import seeded
from rewards.contrastive import REWARDS, TinyClip


@pytest.fixture(scope="module")
def clip():
    return TinyClip()


def _images(prompts, seed):
    rng = seeded(seed)[0]
    return torch.from_numpy(world.render([world.draw(world.parse(prompt), rng) for prompt in prompts]))


HELDOUT = world.prompts("heldout")
GROUP = np.zeros(len(HELDOUT), dtype=np.int64)


def test_the_scorer_is_named_tiny_clip():
    assert dict(REWARDS) == {"tiny-clip": TinyClip}


def test_true_renders_score_far_above_other_captions(clip):
    images = _images(HELDOUT, 0)
    true, other = clip(images, HELDOUT, GROUP), clip(images, HELDOUT[7:] + HELDOUT[:7], GROUP)
    assert true.mean() > other.mean() + 0.3
    assert (true > other).mean() > 0.97


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("a red circle", "a blue circle"),
        ("a red circle", "a red square"),
        ("a small red circle", "a large red circle"),
        ("a red circle on the left", "a red circle on the right"),
        ("two red circles", "four red circles"),
    ],
)
def test_a_picture_prefers_its_caption_to_one_that_differs_in_one_respect(clip, right, wrong):
    images, group = _images([right] * 20, 1), GROUP[:20]
    assert (clip(images, [right] * 20, group) > clip(images, [wrong] * 20, group)).mean() >= 0.8


def test_it_knows_which_colour_belongs_to_which_shape(clip):
    scenes = [world.parse(prompt) for prompt in HELDOUT if world.parse(prompt).category == "two"]
    scenes = [scene for scene in scenes if scene.things[0].shape != scene.things[1].shape]
    right, wrong = [], []
    for scene in scenes:
        first, second = scene.things
        crossed = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        right.append(world.caption(scene))
        wrong.append(world.caption(replace(scene, things=crossed)))
    images, group = _images(right, 7), GROUP[: len(right)]
    assert len(scenes) >= 10
    assert (clip(images, right, group) > clip(images, wrong, group)).mean() >= 0.8


def test_scores_are_cosines_in_float64(clip):
    scores = clip(_images(HELDOUT, 2), HELDOUT, GROUP)
    assert scores.dtype == np.float64
    assert np.abs(scores).max() <= 1.0


def test_a_score_does_not_depend_on_batch_order_or_neighbours(clip):
    prompts, images = HELDOUT[:20], _images(HELDOUT[:20], 3)
    together = clip(images, prompts, GROUP[:20])
    alone = [clip(images[i : i + 1], prompts[i : i + 1], GROUP[:1])[0] for i in range(20)]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, clip(images.flip(0), prompts[::-1], GROUP[:20])[::-1])


def test_a_broken_image_fails_alone(clip):
    prompts, images = HELDOUT[:3], _images(HELDOUT[:3], 4)
    whole = clip(images, prompts, GROUP[:3])
    images[1, 2, 5, 5] = float("nan")
    broken = clip(images, prompts, GROUP[:3])
    assert np.isnan(broken[1])
    np.testing.assert_array_equal(broken[[0, 2]], whole[[0, 2]])


def test_a_foreign_prompt_and_a_foreign_size_are_refused(clip):
    with pytest.raises(ValueError, match="not a prompt of the embedded world"):
        clip(torch.zeros(1, 3, 32, 32), ["a photo of a cat"], GROUP[:1])
    with pytest.raises(ValueError, match="shape"):
        clip(torch.zeros(1, 3, 64, 64), ["a red circle"], GROUP[:1])


def test_features_are_float32_and_do_not_depend_on_the_batch(clip):
    images = _images(HELDOUT[:10], 5)
    features = clip.features(images)
    assert features.dtype == torch.float32
    assert features.shape == (10, 96)
    torch.testing.assert_close(features[3:4], clip.features(images[3:4]), atol=1e-6, rtol=0)


def test_features_tell_clean_pictures_from_careless_ones(clip):
    rng = seeded(6)[0]
    clean = [world.draw(world.parse(prompt), rng) for prompt in HELDOUT]
    again = [world.draw(world.parse(prompt), rng) for prompt in HELDOUT]
    web = [world.corrupt(picture, rng) for picture in again]
    means = [clip.features(torch.from_numpy(world.render(p))).mean(0) for p in (clean, again, web)]
    assert (means[0] - means[2]).norm() > 2 * (means[0] - means[1]).norm()


def test_missing_weights_name_the_command_that_makes_them(monkeypatch, tmp_path):
    monkeypatch.setattr("rewards.contrastive.FOLDER", tmp_path / "tiny-clip")
    with pytest.raises(FileNotFoundError, match=r"python -m bench\.embedded\.make --stage scorer"):
        TinyClip()
