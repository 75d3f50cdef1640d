import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.embedded import world
from bench.embedded.training import seeded

SCENES = tuple(world.scenes())
PICKS = st.sampled_from(SCENES)


def _picture(scene, seed):
    return world.draw(scene, seeded(seed)[0])


def test_parse_is_the_inverse_of_caption_on_every_scene():
    assert [world.parse(world.caption(scene)) for scene in SCENES] == list(SCENES)


def test_no_two_scenes_share_a_caption():
    assert len({world.caption(scene) for scene in SCENES}) == len(SCENES) == 5600


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red dog",
        "red circle",
        "a red circle.",
        "A red circle",
        "five red circles",
        "two red circle",
        "a red circle and a red square",
        "a small red circle on the left",
        "a red circle on a blue square",
    ],
)
def test_a_foreign_prompt_is_refused_with_examples_to_write(prompt):
    with pytest.raises(ValueError, match=r"is not a prompt of the embedded world; write .*'a red circle'"):
        world.parse(prompt)


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="base, train, tune, heldout"):
        world.prompts("test")


def test_splits_have_the_documented_sizes_and_are_balanced():
    kinds = {split: [world.parse(prompt).category for prompt in world.prompts(split)] for split in world.SPLITS}
    sizes = {"heldout": 20, "tune": 4, "train": 8}
    for split, size in sizes.items():
        assert {category: kinds[split].count(category) for category in world.CATEGORIES} == dict.fromkeys(
            world.CATEGORIES, size
        )
    assert len(kinds["base"]) == 5408
    assert all(kinds[split][:6] == list(world.CATEGORIES) for split in world.SPLITS)


def test_prompts_of_a_split_are_distinct():
    assert all(len(set(world.prompts(split))) == len(world.prompts(split)) for split in world.SPLITS)


def test_training_prompts_are_base_prompts():
    assert set(world.prompts("train")) <= set(world.prompts("base"))


def _meanings(split):
    """What a prompt shows, written without the grammar's two ways to say it."""
    shown = set()
    for scene in map(world.parse, world.prompts(split)):
        things = [(thing.colour, thing.shape) for thing in scene.things]
        if scene.relation:
            dx, dy = world.RELATIONS[scene.relation]
            shown.add(("relation", frozenset([(things[0], (dx, dy)), (things[1], (-dx, -dy))])))
        else:
            shown.add((frozenset(things), scene.count, scene.size, scene.place))
    return shown


@pytest.mark.parametrize("split", ["tune", "heldout"])
def test_what_is_held_out_is_nowhere_else_under_any_wording(split):
    others = [_meanings(other) for other in world.SPLITS if other != split]
    assert not _meanings(split) & set().union(*others)


def test_the_splits_are_those_the_shipped_model_was_made_with():

    texts = ["\n".join(world.prompts(split)) for split in world.SPLITS]
    assert {s: hashlib.sha256(t.encode()).hexdigest()[:12] for s, t in zip(world.SPLITS, texts, strict=True)} == {
        "base": "4c043e8cf5d1",
        "train": "d2c6d5a164be",
        "tune": "f17f0d7ffb2e",
        "heldout": "f2d54d5346ad",
    }


@settings(deadline=None, max_examples=40)
@given(PICKS, st.integers(0, 2**32))
def test_a_drawing_shows_its_scene_and_nothing_else(scene, seed):
    sprites = _picture(scene, seed).sprites
    assert [sprite.shape for sprite in sprites] == [thing.shape for thing in scene.wanted]
    reach = np.array([(s.x - s.radius, s.y - s.radius, 31 - s.x - s.radius, 31 - s.y - s.radius) for s in sprites])
    assert reach.min() > 0.0
    gaps = [np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius for a in sprites for b in sprites if a is not b]
    assert min(gaps, default=1.0) >= 1.0


@settings(deadline=None, max_examples=40)
@given(PICKS, st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_picture(scene, seed):
    assert _picture(scene, seed) == _picture(scene, seed)


@settings(deadline=None, max_examples=40)
@given(st.lists(PICKS, min_size=2, max_size=6), st.integers(0, 2**32))
def test_a_picture_looks_the_same_alone_and_among_others(scenes, seed):
    pictures = [_picture(scene, seed + index) for index, scene in enumerate(scenes)]
    together = world.render(pictures)
    assert together.dtype == np.float32
    assert together.shape == (len(scenes), 3, 32, 32)
    for picture, image in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(world.render([picture])[0], image)


@settings(deadline=None, max_examples=40)
@given(PICKS, st.integers(0, 2**32))
def test_pixels_lie_in_the_unit_interval_dark_ground_and_bright_things(scene, seed):
    image = world.render([_picture(scene, seed)])[0]
    assert 0.0 <= image.min() <= 0.22
    assert 0.5 < image.max() <= 1.0


@pytest.mark.parametrize("shape", list(world.SHAPES))
def test_a_shape_is_anti_aliased_and_moves_with_its_centre(shape):
    at = np.array([12.0])
    cover = world.coverage(shape, at, at, np.array([5.0]))[0]
    assert ((cover > 0.0) & (cover < 1.0)).sum() > 5
    np.testing.assert_allclose(
        np.roll(cover, (3, 2), (0, 1)), world.coverage(shape, at + 2, at + 3, np.array([5.0]))[0]
    )


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", 1.72**2),
        ("triangle", 1.2**2 * 0.75 * np.sqrt(3)),
        ("ring", np.pi * (1 - 0.45**2)),
        ("cross", 4 * 2 * 0.34 - 4 * 0.34**2),
    ],
)
def test_a_shape_covers_the_area_of_geometry(shape, area):
    at = np.array([15.5])
    assert world.coverage(shape, at, at, np.array([10.0])).sum() == pytest.approx(100 * area, rel=0.02)


def test_corruption_has_the_documented_shares():
    rng = seeded(0)[0]
    clean = [world.draw(scene, rng) for scene in rng.choice(np.array(SCENES, dtype=object), 1000)]
    web = [world.corrupt(picture, rng) for picture in clean]
    clutter = np.mean([len(w.sprites) > len(c.sprites) for w, c in zip(web, clean, strict=True)])
    faded = [picture.fade for picture in web if picture.fade > 0]
    assert clutter == pytest.approx(0.45, abs=0.05)
    assert len(faded) / 1000 == pytest.approx(0.60, abs=0.05)
    assert np.mean(faded) == pytest.approx(0.30, abs=0.02)
    assert max(faded) <= 0.6


def test_corruption_keeps_what_was_asked_for():
    rng = seeded(1)[0]
    picture = world.draw(SCENES[7], rng)
    for _ in range(50):
        assert world.corrupt(picture, rng).sprites[: len(picture.sprites)] == picture.sprites


def test_fading_keeps_the_hue():
    picture = _picture(world.parse("a red circle"), 0)
    faded = world.Picture(sprites=picture.sprites, ground=picture.ground, fade=0.5)
    clean, pale = (world.render([one])[0] - picture.ground for one in (picture, faded))
    np.testing.assert_allclose(pale, clean / 2, atol=1e-6)


def test_importing_the_world_imports_no_torch():

    code = "import sys, bench.embedded.world; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
