"""Images as scorers see them: checked, rounded, in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.scorers.pixels import check_images, distinct, eight_bit, pictures, scored


def first_pixel(calls):
    def score(pixels, prompts):
        calls.append((tuple(pixels.shape), prompts))
        return pixels.flatten(1)[:, 0].float()

    return score


@pytest.mark.parametrize(
    ("images", "media", "kind", "said"),
    [
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            "image",
            TypeError,
            "images are floats in .*divide 8-bit values by 255",
        ),
        (torch.zeros(2, 3, 4), "image", ValueError, r"\[leaf, 3, height, width\] are wanted"),
        (torch.zeros(2, 1, 4, 4), "image", ValueError, r"RGB, not \[2, 1, 4, 4\]"),
        (torch.zeros(2, 4, 4, 4), "image", ValueError, r"RGB, not \[2, 4, 4, 4\]"),
        (torch.zeros(2, 3, 0, 4), "image", ValueError, "wanted"),
        (torch.zeros(2, 5, 3, 4, 4), "image", ValueError, "wanted"),
        (torch.zeros(2, 3, 4, 4), "video", ValueError, r"\[leaf, frame, 3, height, width\] are wanted"),
        (torch.zeros(2, 0, 3, 4, 4), "video", ValueError, "wanted"),
        (torch.full((2, 3, 4, 4), 255.0), "image", ValueError, r"lie in \[0, 1\], and these from 255 to 255"),
        (torch.full((2, 3, 4, 4), -1.0), "image", ValueError, "these from -1 to -1"),
        (torch.zeros(3, 3, 4, 4), "image", ValueError, "3 images and 2 prompts: one each is wanted"),
        (torch.zeros(1, 5, 3, 4, 4), "video", ValueError, "1 videos and 2 prompts"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, media, kind, said):
    with pytest.raises(kind, match=said):
        check_images(images, ["a", "b"], media)


def test_what_is_not_finite_is_not_out_of_range():
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = float("nan"), float("inf")
    check_images(images, ["a", "b"])
    check_images(torch.full((1, 3, 2, 2), float("nan")), ["a"])
    check_images(torch.full((1, 3, 2, 2), 1.009), ["a"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pixels_are_rounded_as_a_file_holds_them(dtype):
    values = torch.tensor([-0.005, 0.0, 0.498, 0.5, 1.0, 1.005]).to(dtype)
    rounded, valid = eight_bit(values.reshape(1, 1, 1, 6).expand(1, 3, 1, 6))
    expected = np.rint(np.clip(values.float().numpy(), 0, 1) * np.float32(255))
    np.testing.assert_array_equal(rounded[0, 0, 0].numpy(), expected)
    assert valid.tolist() == [True]


def test_an_image_that_is_not_finite_is_black_and_marked():
    images = torch.full((3, 3, 2, 2), 0.5)
    images[1, 0, 0, 0] = float("nan")
    rounded, valid = eight_bit(images)
    assert valid.tolist() == [True, False, True]
    assert int(rounded[1, 0, 0, 0]) == 0


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_scores_come_in_order_whatever_the_batch(batch):
    images = torch.arange(7).float().reshape(7, 1, 1, 1).expand(7, 3, 2, 2) / 255
    calls = []
    found = scored(first_pixel(calls), images, list("abcdefg"), batch)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.arange(7))
    assert "".join(letter for _, prompts in calls for letter in prompts) == "abcdefg"
    assert max(shape[0] for shape, _ in calls) == min(batch, 7)


def test_broken_images_are_not_shown_to_the_scorer():
    images = torch.arange(5).float().reshape(5, 1, 1, 1).expand(5, 3, 2, 2).clone() / 255
    images[[0, 3]] = float("nan")
    calls = []
    found = scored(first_pixel(calls), images, list("abcde"), 2)
    np.testing.assert_array_equal(found, [np.nan, 1, 2, np.nan, 4])
    assert [prompts for _, prompts in calls] == [["b", "c"], ["e"]]
    assert np.isnan(scored(first_pixel([]), images[[0, 3]], ["a", "b"], 2)).all()


def test_videos_are_no_images_and_images_no_videos():
    video, image = torch.zeros(2, 4, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    for wrong, media in ((video, "image"), (image, "video")):
        with pytest.raises(ValueError, match=rf"{media}s of shape \[leaf"):
            scored(first_pixel([]), wrong, ["a", "b"], 8, media)


def test_videos_are_scored_like_images():
    calls = []
    scored(first_pixel(calls), torch.zeros(2, 4, 3, 2, 2), ["a", "b"], 8, "video")
    assert calls == [((2, 4, 3, 2, 2), ["a", "b"])]


def test_no_image_at_all_has_no_score():
    assert scored(first_pixel([]), torch.zeros(0, 3, 2, 2), [], 8).shape == (0,)


def test_each_prompt_is_there_once():
    texts, place = distinct(["b", "a", "b", "b"])
    assert (texts, place) == (["b", "a"], [0, 1, 0, 0])


def test_pictures_have_the_pixels_in_place():
    pixels = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).reshape(2, 3, 2, 4)
    second = pictures(pixels)[1]
    assert (second.mode, second.size) == ("RGB", (4, 2))
    assert second.getpixel((3, 1)) == tuple(pixels[1, :, 1, 3].tolist())
