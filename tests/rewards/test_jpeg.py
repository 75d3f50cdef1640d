"""The size of an image as a JPEG file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scored import check_a_broken_image_fails_alone, check_wrong_input, images, scores

from rewards.jpeg import REWARDS, Compressibility, Incompressibility


@pytest.mark.parametrize("size", [(512, 512), (72, 48), (48, 83), (100, 60), (1, 1)])
@pytest.mark.parametrize("quality", [95, 60])
def test_the_size_is_that_of_the_file_in_thousands_of_bytes(tmp_path, size, quality):
    batch = images(1, *size)
    pixels = (batch[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "image.jpg", quality=quality)
    expected = (tmp_path / "image.jpg").stat().st_size / 1000
    assert scores(Incompressibility(quality=quality), batch, ["a cat"]) == [expected]
    assert scores(Compressibility(quality=quality), batch, ["a cat"]) == [-expected]


def test_noise_is_larger_than_flat_colour():
    flat, rough = torch.full((1, 3, 64, 64), 0.5), images(1, 64, 64)
    both = torch.cat([flat, rough])
    small, large = scores(Incompressibility(), both, ["a", "b"])
    assert large > 2 * small
    low, high = scores(Compressibility(), both, ["a", "b"])[::-1]
    assert low < high < 0


def test_no_score_depends_on_order_neighbours_or_prompts():
    batch = images(6, 50, 40)
    together = scores(Incompressibility(), batch)
    np.testing.assert_array_equal(scores(Incompressibility(), batch.flip(0))[::-1], together)
    alone = [scores(Incompressibility(), batch[i : i + 1], [""])[0] for i in range(6)]
    np.testing.assert_array_equal(alone, together)
    assert together.dtype == np.float64


def test_more_images_than_one_batch_are_scored_in_order():
    batch = images(70, 8, 8)
    sizes = []
    for one in (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=95)
        sizes.append(len(file.getvalue()) / 1000)
    np.testing.assert_array_equal(scores(Incompressibility(), batch, ["a"] * 70), sizes)


@pytest.mark.parametrize("name", REWARDS)
def test_a_broken_image_fails_alone_and_wrong_ones_are_refused(name):
    check_a_broken_image_fails_alone(REWARDS[name]())
    check_wrong_input(REWARDS[name]())


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_that_there_is_not_is_refused(quality):
    with pytest.raises(ValueError, match=f"quality={quality}: 1 to 100"):
        Incompressibility(quality=quality)


def test_what_the_numbers_mean_is_said():
    more, less = REWARDS["jpeg-incompressibility"]().info, REWARDS["jpeg-compressibility"](quality=60).info
    assert more.unit == less.unit == "kB"
    assert more.low == 0.0 == less.high
    assert "quality 60" in less.preprocessing
    assert more.higher_is_better
    assert less.higher_is_better
