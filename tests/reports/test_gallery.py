import base64
import io
from typing import Any

import pytest
from PIL import Image
from synthetic_suite import BASE, write_cell, write_images, write_suite

from bench.record import read_suite
from reports.arms import arms
from reports.build import build
from reports.gallery import galleries


@pytest.fixture
def suite(tmp_path):
    folder = write_suite(tmp_path / "demo")
    write_images(folder / BASE / "samples", range(6))
    return folder


def shown(folder):
    record = read_suite(folder)
    return galleries(record, arms(record))


def image(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def shades(frame):
    return [image(uri).convert("RGB").getpixel((0, 0)) for uri in frame.images]


def test_a_row_is_one_prompt_in_every_column(suite):
    for shade, iterations in ((100, 2), (200, 4)):
        write_images(write_cell(suite, f"dance(tf=0.{iterations})", 0) / "samples" / "000002", range(6), shade)
    (gallery,) = shown(suite)
    assert gallery.prompts == tuple(f"prompt {number}" for number in range(6))
    assert shades(gallery.base) == [(0, 20 * number, 80) for number in range(6)]
    assert [shades(column.frames[0])[5] for column in gallery.columns] == [(100, 100, 80), (200, 100, 80)]


def test_steps_are_the_checkpoints_of_any_arm_and_the_base(suite):
    for label, iterations in (("dance", (10, 20)), ("mix", (20, 30))):
        cell = write_cell(suite, label, 0, algo=label)
        for iteration in iterations:
            write_images(cell / "samples" / f"{iteration:06d}", range(6))
    (gallery,) = shown(suite)
    assert gallery.steps == (0, 10, 20, 30)
    assert [[frame.iteration for frame in column.frames] for column in gallery.columns] == [[10, 20], [20, 30]]


def test_samples_without_folders_are_the_finished_models(suite):
    cell = write_cell(suite, "dance", 0)
    write_images(cell / "samples", range(6), 100)
    (gallery,) = shown(suite)
    assert gallery.steps == (0, 4)
    assert shades(gallery.columns[0].frames[0])[0] == (100, 0, 80)


def test_prompts_are_those_that_every_frame_has(suite):
    cell = write_cell(suite, "dance", 0)
    write_images(cell / "samples" / "000002", [1, 3, 4])
    write_images(cell / "samples" / "000004", range(6))
    (gallery,) = shown(suite)
    assert gallery.prompts == ("prompt 1", "prompt 3", "prompt 4")


def test_at_most_eight_prompts_are_shown(tmp_path):
    suite = write_suite(tmp_path / "demo", prompts=12)
    write_images(suite / BASE / "samples", range(12))
    write_images(write_cell(suite, "dance", 0) / "samples" / "000004", range(12))
    assert len(shown(suite)[0].prompts) == 8


def test_the_first_finished_seed_is_shown_and_said(suite):
    for seed, done in ((0, False), (1, True), (2, True)):
        cell = write_cell(suite, "dance", seed, done=done)
        write_images(cell / "samples" / "000002", range(6), 10 * seed)
    (gallery,) = shown(suite)
    assert [column.note for column in gallery.columns] == ["seed 1"]
    assert shades(gallery.columns[0].frames[0])[0] == (10, 0, 80)


def test_an_unfinished_cell_shows_its_checkpoints(suite):
    cell = write_cell(suite, "dance", 3, done=False)
    write_images(cell / "samples" / "000002", range(6))
    (gallery,) = shown(suite)
    assert [column.note for column in gallery.columns] == ["seed 3, unfinished"]


def test_large_images_are_made_smaller_and_small_ones_are_kept_as_they_are(suite):
    cell = write_cell(suite, "dance", 0)
    write_images(cell / "samples" / "000004", range(6), side=512)
    (gallery,) = shown(suite)
    assert image(gallery.columns[0].frames[0].images[0]).size == (256, 256)
    assert gallery.shrunk
    assert not gallery.small
    there = (suite / BASE / "samples" / "000.png").read_bytes()
    assert base64.b64decode(gallery.base.images[0].partition(",")[2]) == there


def test_small_images_are_shown_pixel_by_pixel(suite):
    write_images(write_cell(suite, "dance", 0) / "samples" / "000004", range(6))
    (gallery,) = shown(suite)
    assert gallery.small
    assert not gallery.shrunk


def test_without_images_there_is_no_section_and_no_script(suite, tmp_path):
    write_cell(suite, "dance", 0)
    assert shown(suite) == []
    page = build(suite, tmp_path / "reports").page.read_text()
    assert "<h2>Images</h2>" not in page
    assert "<script" not in page
    assert "script-src" not in page


def test_a_damaged_image_is_named(suite):
    cell = write_cell(suite, "dance", 0)
    write_images(cell / "samples" / "000004", range(6))
    (cell / "samples" / "000004" / "002.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"002\.png is no image; delete it"):
        shown(suite)


def test_large_videos_are_made_smaller_and_still_move(suite):
    cell = write_cell(suite, "dance", 0)
    write_images(cell / "samples" / "000004", range(6), side=512)
    path = cell / "samples" / "000004" / "000.png"
    frames = [Image.new("RGB", (832, 480), (60 * number, 0, 0)) for number in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=120, loop=0)
    (gallery,) = shown(suite)
    uri = gallery.columns[0].frames[0].images[0]
    assert uri.startswith("data:image/webp;")
    moving: Any = image(uri)
    assert (moving.size, moving.n_frames) == ((256, 148), 4)
    reds = []
    for number in range(4):
        moving.seek(number)
        reds.append(moving.convert("RGB").getpixel((9, 9))[0])
    assert reds == sorted(reds)
    assert reds[3] - reds[0] > 120
    assert moving.info["duration"] == 120
