"""`bench score` in parts: what it reads, in which batches, and what it refuses before any work."""

import json
import math
import os
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from bench.contract import RewardInfo
from bench.embedded.training import seeded
from bench.registry import InputError
from bench.scorers.captions import Captioned
from bench.scorers.files import check_rates, check_whole, document, measured, read, score_files, summary, table

CPU = torch.device("cpu")


class Shown:
    """Scores an image by its mean, and tells what it was shown."""

    info: ClassVar = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")

    def __init__(self):
        self.calls = []

    def __call__(self, images, prompts, group):
        self.calls.append((list(prompts), tuple(images.shape)))
        return images.flatten(1).mean(1).double().numpy()


class Compared(Shown):
    """Scores an image by how many of its group it was shown with."""

    info: ClassVar = RewardInfo(
        unit="", low=1.0, high=math.inf, higher_is_better=True, revision="1", reference="", groupwise=True
    )

    def __call__(self, images, prompts, group):
        super().__call__(images, prompts, group)
        return np.array([float((group == one).sum()) for one in group])


def pictures(folder, prompts, sizes=None):
    """A PNG of noise for each prompt."""
    rng, found = seeded(0)[0], []
    for at, prompt in enumerate(prompts):
        size = sizes[at] if sizes else (8, 8)
        file = folder / f"{at}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
        found.append(Captioned(file=file, prompt=prompt))
    return found


def scored(rewards, files, batch, media="image"):
    return score_files(rewards, files, measured(files, media), batch, CPU, lambda _: None)


def film(path, duration=100):
    """An animation of nine frames of noise."""
    first, *others = map(Image.fromarray, seeded(0)[0].integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    first.save(path, save_all=True, append_images=others, duration=duration)
    return Captioned(file=path, prompt="a film")


def test_no_more_than_a_batch_of_images_is_in_memory_even_of_one_prompt(tmp_path):
    shown = Shown()
    scored({"shown": shown}, pictures(tmp_path, ["one"] * 20), 8)
    assert [shape[0] for _, shape in shown.calls] == [7, 6, 7]


def test_a_scorer_that_compares_has_the_images_of_a_prompt_together_wherever_they_stand(tmp_path):
    found = scored({"compared": Compared()}, pictures(tmp_path, ["a", "b", "a", "c", "b", "a"]), 2)
    assert found.scores["compared"].tolist() == [3, 2, 3, 1, 2, 3]


def test_images_of_one_prompt_stand_side_by_side(tmp_path):
    shown = Shown()
    scored({"shown": shown}, pictures(tmp_path, ["a", "b", "a", "b"]), 2)
    assert [prompts for prompts, _ in shown.calls] == [["a", "a"], ["b", "b"]]


def test_a_group_of_which_one_cannot_be_read_fails_whole_where_it_is_compared(tmp_path):
    files = pictures(tmp_path, ["a", "b", "a", "b"])
    files[2].file.write_bytes(files[2].file.read_bytes()[:-60])
    found = scored({"compared": Compared(), "shown": Shown()}, files, 4)
    np.testing.assert_array_equal(found.scores["compared"], [np.nan, 2, np.nan, 2])
    np.testing.assert_array_equal(np.isnan(found.scores["shown"]), [False, False, True, False])
    assert len(found.failures) == 1
    assert "2.png" in found.failures[0]


def test_a_prompt_with_images_of_two_sizes_is_refused_where_they_are_compared(tmp_path):
    files = pictures(tmp_path, ["a", "b", "a"], [(8, 8), (9, 8), (8, 10)])
    sizes = measured(files, "image")
    check_whole({"shown": Shown()}, files, sizes)
    check_whole({"compared": Compared()}, files[:2], sizes[:2])
    with pytest.raises(InputError, match=r"compared compares .*0\.png has 8 x 8 and .*2\.png 10 x 8"):
        check_whole({"compared": Compared()}, files, sizes)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_read_as_it_is_shown(tmp_path, ending, orientation):
    upright = Image.new("RGB", (40, 30), "black")
    upright.paste("white", (0, 0, 20, 15))
    stored = {1: 0, 3: 180, 6: 90, 8: 270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"0.{ending}"
    upright.rotate(stored, expand=True).save(file, exif=exif)
    assert measured([Captioned(file=file, prompt="")], "image") == [(0, 30, 40)]
    pixels = read(file, "image")
    assert pixels.shape == (3, 30, 40)
    assert pixels[:, 3:12, 3:17].min() > 0.9
    assert pixels[:, 18:].max() < 0.1


def test_images_whose_headers_hide_that_they_are_turned_are_scored_too(tmp_path):
    files = pictures(tmp_path, ["a", "b"], [(8, 9), (8, 9)])
    found = score_files(
        {"shown": Shown()}, files[::-1] + pictures(tmp_path, ["c"], [(9, 8)]), [(0, 8, 9)] * 3, 3, CPU, print
    )
    assert not np.isnan(found.scores["shown"]).any()


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_an_animation_that_is_cut_is_refused(tmp_path, name, keep):
    one = film(tmp_path / name)
    data = one.file.read_bytes()
    one.file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=name):
        measured([one], "video")


def test_a_gif_whose_middle_is_missing_is_refused(tmp_path):
    one = film(tmp_path / "a.gif")
    data = one.file.read_bytes()
    one.file.write_bytes(data[: len(data) // 2] + b";")
    with pytest.raises(InputError, match=r"a\.gif is no"):
        measured([one], "video")


def test_an_animation_of_which_a_frame_is_spoilt_is_refused(tmp_path):
    one = film(tmp_path / "a.png")
    data = bytearray(one.file.read_bytes())
    at = data.rindex(b"fdAT")
    data[at + 8 : at + 40] = bytes(32)
    one.file.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png is no video, or damaged"):
        measured([one], "video")


def test_a_picture_is_no_video(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    for name, says in (
        ("a.png", "is one image, and no video"),
        ("a.jpg", "is an image, and these scorers score videos"),
    ):
        with pytest.raises(InputError, match=says):
            measured([Captioned(file=tmp_path / name, prompt="")], "video")


def test_a_palette_with_a_transparent_colour_is_refused(tmp_path):
    Image.new("P", (8, 8)).save(tmp_path / "a.png", transparency=0)
    with pytest.raises(InputError, match=r"a\.png has mode P, transparent: 8-bit RGB is wanted"):
        measured([Captioned(file=tmp_path / "a.png", prompt="")], "image")


class Timed(Shown):
    fps = 16.0


@pytest.mark.parametrize(("duration", "fits"), [(62, True), (63, True), (100, False), (60, False)])
def test_a_file_of_another_rate_than_the_scorer_takes_is_refused_with_the_remedy(tmp_path, duration, fits):
    files = [film(tmp_path / "a.png", duration)]
    check_rates({"shown": Shown()}, files)
    if fits:
        check_rates({"timed(dimension=mq)": Timed()}, files)
        return
    rate = f"{1000 / duration:.4g}"
    with pytest.raises(InputError) as caught:
        check_rates({"timed(dimension=mq)": Timed()}, files)
    assert f"a.png has {rate} frames a second, and timed(dimension=mq) takes 16: say" in str(caught.value)
    assert f"timed(fps={rate})" in str(caught.value)


class Stopped(Shown):
    def __call__(self, images, prompts, group):
        if self.calls:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(images, prompts, group)


def test_what_was_scored_before_ctrl_c_is_kept(tmp_path):
    found = scored({"stopped": Stopped()}, pictures(tmp_path, list("abcdef")), 2)
    assert np.isnan(found.scores["stopped"]).tolist() == [False, False, True, True, True, True]
    assert found.failures == ("interrupted: what is not scored has no score",)


def test_a_summary_has_the_deviation_of_a_sample_and_counts_what_failed():
    assert summary(np.array([1.0, np.nan, 3.0])) == {"mean": 2.0, "std": math.sqrt(2.0), "scored": 2, "failed": 1}
    assert summary(np.array([1.0]))["std"] is None
    assert summary(np.array([np.nan]))["mean"] is None


def test_a_range_without_an_end_is_null(tmp_path):
    reward = {"compared": Compared()}
    found = scored(reward, pictures(tmp_path, ["a"]), 1)
    told = json.loads(json.dumps(document(found, reward), allow_nan=False))
    assert (told["scorers"]["compared"]["low"], told["scorers"]["compared"]["high"]) == (1.0, None)
    assert table(found).endswith(",a,1.0\r\n")
