from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.embedded import world
from bench.embedded.training import seeded
from bench.embedded.world import Picture, Sprite
from rewards import shapes
from rewards.shapes import REWARDS, Graded, Soft, Strict

SCENES = tuple(world.scenes())
GROUP = np.zeros(120, dtype=np.int64)


def _images(prompts, seed, web=False):
    rng = seeded(seed)[0]
    pictures = [world.draw(world.parse(prompt), rng) for prompt in prompts]
    return torch.from_numpy(world.render([world.corrupt(p, rng) for p in pictures] if web else pictures))


def _score(reward, prompts, images):
    return reward()(images, prompts, np.zeros(len(prompts), dtype=np.int64))


def _one(name, prompt, *sprites, fade=0.0):
    image = torch.from_numpy(world.render([Picture(sprites=sprites, ground=0.15, fade=fade)]))
    return float(_score(REWARDS[name], [prompt], image)[0])


def _sprite(colour, shape, x=16.0, y=16.0, radius=5.0):
    return Sprite(shape=shape, rgb=world.COLOURS[colour], x=x, y=y, radius=radius)


@pytest.mark.parametrize(("name", "least"), [("soft", 0.84), ("graded", 0.995), ("strict", 0.99)])
def test_true_renders_score_near_one(name, least):
    prompts = world.prompts("heldout")
    assert _score(REWARDS[name], prompts, _images(prompts, 0)).mean() >= least


@pytest.mark.parametrize(("name", "most"), [("soft", 0.0), ("graded", 0.35), ("strict", 0.01)])
def test_other_captions_score_low(name, most):
    prompts = world.prompts("heldout")
    other = prompts[7:] + prompts[:7]
    assert _score(REWARDS[name], other, _images(prompts, 0)).mean() <= most


@pytest.mark.parametrize("name", REWARDS)
def test_the_careless_pictures_score_less_than_the_clean_ones(name):
    prompts = world.prompts("heldout")
    clean, web = (_score(REWARDS[name], prompts, _images(prompts, 0, web)).mean() for web in (False, True))
    assert clean > web + 0.05


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(SCENES), st.integers(0, 2**32), st.booleans())
def test_strict_is_one_exactly_where_graded_is(scene, seed, web):
    prompt = [world.caption(scene)]
    image = _images(prompt, seed, web)
    graded, strict = _score(Graded, prompt, image)[0], _score(Strict, prompt, image)[0]
    assert strict == float(graded == 1.0)
    assert 0.0 <= graded <= 1.0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32))
def test_scores_of_noise_stay_in_their_declared_range(seed):
    prompts = world.prompts("tune")
    images = torch.from_numpy(seeded(seed)[0].random((len(prompts), 3, 32, 32), dtype=np.float32))
    for reward in REWARDS.values():
        scores = _score(reward, prompts, images)
        assert reward.info.low <= scores.min() <= scores.max() <= reward.info.high


@pytest.mark.parametrize("name", REWARDS)
def test_an_empty_image_is_worth_nothing(name):
    prompts = world.prompts("tune")
    empty = torch.full((len(prompts), 3, 32, 32), 0.15)
    np.testing.assert_allclose(_score(REWARDS[name], prompts, empty), 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("prompt", "sprites", "strict"),
    [
        ("a red circle", [("red", "circle", 16, 16)], 1),
        ("a red circle", [("red", "ring", 16, 16)], 0),
        ("a red circle", [("pink", "circle", 16, 16)], 0),
        ("a red circle", [("red", "circle", 8, 8), ("blue", "cross", 24, 24)], 0),
        ("a small red circle", [("red", "circle", 16, 16, 3.5)], 1),
        ("a small red circle", [("red", "circle", 16, 16, 7.0)], 0),
        ("a large red circle", [("red", "circle", 16, 16, 7.0)], 1),
        ("a large red circle", [("red", "circle", 16, 16, 3.5)], 0),
        ("a red circle on the left", [("red", "circle", 8, 16)], 1),
        ("a red circle on the left", [("red", "circle", 24, 16)], 0),
        ("a red circle at the top", [("red", "circle", 16, 8)], 1),
        ("a red circle at the bottom", [("red", "circle", 16, 8)], 0),
        ("two red circles", [("red", "circle", 8, 8), ("red", "circle", 24, 24)], 1),
        ("two red circles", [("red", "circle", 16, 16)], 0),
        ("three red circles", [("red", "circle", 8, 8), ("red", "circle", 24, 24)], 0),
        ("a red circle and a blue square", [("red", "circle", 8, 8), ("blue", "square", 24, 24)], 1),
        ("a blue square and a red circle", [("red", "circle", 8, 8), ("blue", "square", 24, 24)], 1),
        ("a red circle and a blue square", [("blue", "circle", 8, 8), ("red", "square", 24, 24)], 0),
        ("a red circle left of a blue square", [("red", "circle", 8, 16), ("blue", "square", 24, 16)], 1),
        ("a blue square right of a red circle", [("red", "circle", 8, 16), ("blue", "square", 24, 16)], 1),
        ("a red circle above a blue square", [("red", "circle", 8, 16), ("blue", "square", 24, 16)], 0),
        ("a red circle left of a blue square", [("red", "circle", 8, 6), ("blue", "square", 16, 26)], 0),
        ("a red circle below a blue square", [("red", "circle", 16, 24), ("blue", "square", 16, 8)], 1),
    ],
)
def test_the_rule_reads_hand_made_pictures_as_a_person_does(prompt, sprites, strict):
    drawn = [_sprite(c, s, float(x), float(y), *map(float, r)) for c, s, x, y, *r in sprites]
    assert _one("strict", prompt, *drawn) == strict
    assert (_one("graded", prompt, *drawn) == 1.0) == bool(strict)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("a red circle", [("red", "circle", 16, 16)], [("red", "square", 16, 16)]),
        ("a red circle", [("red", "circle", 16, 16)], [("yellow", "circle", 16, 16)]),
        ("a red circle", [("red", "circle", 8, 8)], [("red", "circle", 8, 8), ("blue", "cross", 24, 24)]),
        ("a small red circle", [("red", "circle", 16, 16, 3.5)], [("red", "circle", 16, 16, 7)]),
        ("a red circle on the left", [("red", "circle", 8, 16)], [("red", "circle", 24, 16)]),
        ("two red circles", [("red", "circle", 8, 8), ("red", "circle", 24, 24)], [("red", "circle", 8, 8)]),
        (
            "a red circle above a blue ring",
            [("red", "circle", 16, 8), ("blue", "ring", 16, 24)],
            [("red", "circle", 16, 24), ("blue", "ring", 16, 8)],
        ),
    ],
)
def test_soft_prefers_the_right_picture_by_a_margin(prompt, right, wrong):
    drawn = [[_sprite(c, s, *map(float, rest)) for c, s, *rest in sprites] for sprites in (right, wrong)]
    assert _one("soft", prompt, *drawn[0]) > _one("soft", prompt, *drawn[1]) + 0.15


def test_soft_falls_steadily_with_fading_and_strict_does_not_mind_it():
    sprite = _sprite("green", "cross")
    soft = [_one("soft", "a green cross", sprite, fade=fade) for fade in (0.0, 0.2, 0.4, 0.6)]
    assert all(before > after + 0.02 for before, after in pairwise(soft))
    assert _one("strict", "a green cross", sprite, fade=0.6) == 1.0


def test_soft_is_continuous_where_strict_jumps():
    places = np.linspace(14.0, 9.0, 21)
    soft = [_one("soft", "a red circle on the left", _sprite("red", "circle", x=float(x))) for x in places]
    strict = [_one("strict", "a red circle on the left", _sprite("red", "circle", x=float(x))) for x in places]
    assert np.abs(np.diff(soft)).max() < 0.2
    assert {strict[0], strict[-1]} == {0.0, 1.0}


def test_graded_gives_a_share_for_each_part_that_is_right():
    prompt = "two red circles"
    one = _one("graded", prompt, _sprite("red", "circle"))
    assert one == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert _one("graded", prompt, _sprite("red", "square", x=8.0), _sprite("red", "square", x=24.0)) == pytest.approx(
        2 / 3
    )
    assert _one("graded", "a red circle on the left", _sprite("red", "circle", x=24.0)) == pytest.approx(3 / 4)


def test_the_attribute_is_not_credited_to_other_things():
    assert _one("graded", "a red circle on the left", _sprite("blue", "circle", x=8.0)) == pytest.approx(1 / 4)


@pytest.mark.parametrize("name", REWARDS)
def test_a_score_does_not_depend_on_batch_order_or_neighbours(name):
    prompts = world.prompts("heldout")
    images, reward = _images(prompts, 3, web=True), REWARDS[name]()
    together = reward(images, prompts, GROUP)
    alone = [reward(images[i : i + 1], prompts[i : i + 1], GROUP[:1])[0] for i in range(len(prompts))]
    np.testing.assert_array_equal(together, alone)
    turned = reward(images.flip(0), prompts[::-1], GROUP)
    np.testing.assert_array_equal(together, turned[::-1])


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_image_fails_alone(name, value):
    prompts = world.prompts("tune")[:3]
    images = _images(prompts, 4)
    whole = _score(REWARDS[name], prompts, images)
    images[1, 2, 5, 5] = value
    broken = _score(REWARDS[name], prompts, images)
    assert np.isnan(broken[1])
    np.testing.assert_array_equal(broken[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("name", REWARDS)
def test_a_foreign_prompt_and_a_foreign_size_are_refused(name):
    with pytest.raises(ValueError, match="not a prompt of the embedded world"):
        _score(REWARDS[name], ["a photo of a cat"], torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="shape"):
        _score(REWARDS[name], ["a red circle"], torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", REWARDS)
def test_scores_are_float64_and_of_any_number(name):
    scores = _score(REWARDS[name], ["a red circle"] * 3, torch.zeros(3, 3, 32, 32))
    assert scores.dtype == np.float64
    assert scores.shape == (3,)
    assert _score(REWARDS[name], [], torch.zeros(0, 3, 32, 32)).shape == (0,)


def test_template_match_equals_the_slow_sum_of_squares():
    rng = seeded(5)[0]
    shade = rng.random((1, 32, 32))
    scores = shapes.match(shade, np.array([2]))[0]
    for level, radius in enumerate(shapes.RADII):
        for x, y in ((16, 16), (11, 19), (20, 14)):
            column, row = np.array([float(x)]), np.array([float(y)])
            template = world.coverage("triangle", column, row, np.array([radius]))[0]
            window = world.coverage("circle", column, row, np.array([radius * 1.25 + 1.5]))[0]
            energy = (np.square(shade[0]) * window).sum()
            slow = (2 * (shade[0] * template).sum() - energy) / np.square(template).sum()
            assert scores[level, y, x] == pytest.approx(slow, abs=1e-9)


def test_the_reader_reports_where_and_how_large_a_thing_is():
    sprite = _sprite("cyan", "triangle", x=12.0, y=18.0, radius=5.0)
    (seen,) = shapes.read(world.render([Picture(sprites=(sprite,), ground=0.1)])[0])
    assert (seen.thing.colour, seen.thing.shape) == ("cyan", "triangle")
    assert (seen.x, seen.y, seen.radius) == pytest.approx((12.0, 18.0, 5.0), abs=0.3)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([scene for scene in SCENES if scene.relation]), st.integers(0, 2**32))
def test_a_relation_read_backwards_is_false(scene, seed):
    images = _images([world.caption(scene)], seed)
    backwards = replace(scene, things=scene.things[::-1])
    assert _score(Strict, [world.caption(backwards)], images)[0] == 0.0
    assert _score(Soft, [world.caption(backwards)], images)[0] < 0.6
