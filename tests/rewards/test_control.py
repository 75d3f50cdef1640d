import numpy as np
import torch

from bench.embedded.training import seeded
from rewards.control import REWARDS, Random


def _images(count, seed=0):
    return torch.from_numpy(seeded(seed)[0].random((count, 3, 32, 32), dtype=np.float32))


def _score(images):
    return Random()(images, ["anything"] * len(images), np.arange(len(images)))


def test_the_null_control_is_named_random():
    assert dict(REWARDS) == {"random": Random}


def test_scores_are_uniform():
    scores = _score(_images(4000))
    assert 0.0 <= scores.min() < 0.01 < 0.99 < scores.max() < 1.0
    counts, _ = np.histogram(scores, bins=10, range=(0, 1))
    assert np.square(counts - 400).sum() / 400 < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


def test_equal_images_score_equally_whatever_their_place_prompt_and_group():
    images = _images(5)
    scores = _score(images)
    np.testing.assert_array_equal(scores, Random()(images.flip(0), list("abcde"), np.zeros(5, dtype=np.int64))[::-1])


def test_only_the_eight_bits_of_a_picture_file_count():
    level = torch.full((1, 3, 32, 32), 100 / 255)
    changed = level.clone()
    changed[0, 0, 0, 0] += 1 / 255
    assert _score(level)[0] == _score(level + 0.3 / 255)[0]
    assert _score(level)[0] != _score(changed)[0]


def test_the_hash_is_pinned():
    assert _score(torch.zeros(1, 3, 32, 32))[0] == 0.8494041314692194


def test_a_broken_image_fails_alone():
    images = _images(3)
    whole = _score(images)
    images[1, 0, 0, 0] = float("nan")
    broken = _score(images)
    assert np.isnan(broken[1])
    np.testing.assert_array_equal(broken[[0, 2]], whole[[0, 2]])
