from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.embedded import moving
from bench.embedded.moving import Track, Video
from bench.embedded.training import seeded
from rewards.moving import REWARDS, Caption, Motion, Strict

PROMPTS = list(moving.prompts("heldout"))
GROUP = np.zeros(len(PROMPTS), dtype=np.int64)


def _videos(prompts=PROMPTS, seed=0):
    rng = seeded(seed)[0]
    return [moving.draw(moving.parse(prompt), rng) for prompt in prompts]


def _frames(videos):
    return torch.from_numpy(moving.render(videos))


def _means(frames, prompts=PROMPTS):
    return {name: float(reward()(frames, prompts, GROUP[: len(prompts)]).mean()) for name, reward in REWARDS.items()}


def _one(prompt, *tracks, fade=0.0):
    """Return the scores of one video by name."""
    frames = _frames([Video(tracks=tracks, ground=0.1, fade=fade)])
    return {name: float(reward()(frames, [prompt], GROUP[:1])[0]) for name, reward in REWARDS.items()}


def _track(colour="red", shape="circle", start=(8.0, 16.0), far=(9.0, 0.0), radius=4.5):
    x, y = (tuple(np.linspace(a, a + d, 9).tolist()) for a, d in zip(start, far, strict=True))
    return Track(shape=shape, rgb=moving.COLOURS[colour], radius=radius, x=x, y=y)


@pytest.fixture(scope="module")
def clean():
    return _frames(_videos())


def test_true_renders_score_full(clean):
    scores = _means(clean)
    assert scores["motion"] > 0.99
    assert scores["moving-caption"] == scores["moving-strict"] == 1.0


def test_shuffled_captions_score_next_to_nothing(clean):
    scores = _means(clean, PROMPTS[4:] + PROMPTS[:4])
    assert scores["motion"] < 0.15
    assert scores["moving-strict"] < 0.05


def test_careless_videos_score_between():
    rng = seeded(1)[0]
    scores = _means(_frames([moving.corrupt(video, rng) for video in _videos()]))
    assert 0.45 < scores["motion"] < 0.75
    assert 0.35 < scores["moving-strict"] < 0.75


@pytest.mark.parametrize("pace", [" slowly", "", " fast"])
def test_the_way_counts(pace):
    far = {" slowly": 4.5, "": 9.0, " fast": 14.0}[pace]
    right = _one(f"a red circle moving right{pace}", _track(far=(far, 0.0)))
    left = _one(f"a red circle moving left{pace}", _track(far=(far, 0.0)))
    assert right["moving-strict"] == 1.0
    assert left["moving-strict"] == 0.0
    assert left["moving-caption"] == 0.75
    assert left["motion"] < 0.3 * right["motion"]


def test_the_pace_counts_where_the_prompt_names_one():
    slow, fast = _track(far=(4.5, 0.0)), _track(far=(14.0, 0.0))
    assert _one("a red circle moving right fast", slow)["moving-strict"] == 0.0
    assert _one("a red circle moving right slowly", fast)["moving-strict"] == 0.0
    assert [_one("a red circle moving right", track)["moving-strict"] for track in (slow, fast)] == [1.0, 1.0]


def test_what_should_stay_must_not_drift():
    prompt = "a red circle that stays still"
    assert _one(prompt, _track(far=(0.0, 0.0)))["moving-strict"] == 1.0
    assert _one(prompt, _track(far=(0.0, 6.0)))["moving-strict"] == 0.0


def test_stopping_halfway_costs():
    whole = _track(far=(10.0, 0.0))
    stopped = moving._stalled(whole, 4)
    scores = [_one("a red circle moving right", track) for track in (whole, stopped)]
    assert scores[0]["moving-strict"] == 1.0 > scores[1]["moving-strict"]
    assert scores[1]["motion"] < 0.8 * scores[0]["motion"]


def test_further_is_better_in_small_steps_up_to_what_is_asked_for():
    scores = [_one("a red circle moving right", _track(far=(far, 0.0)))["motion"] for far in np.linspace(-8.0, 7.0, 31)]
    assert all(a < b < a + 0.12 for a, b in pairwise(scores))


def test_fading_costs_motion_but_not_caption():
    bright, pale = (_one("a red circle moving right", _track(), fade=fade) for fade in (0.0, 0.5))
    assert pale["motion"] < 0.7 * bright["motion"]
    assert pale["moving-strict"] == bright["moving-strict"] == 1.0


@pytest.mark.parametrize(("colour", "shape", "credit"), [("blue", "circle", 0.0), ("red", "square", 0.75)])
def test_a_wrong_colour_or_shape_costs(colour, shape, credit):
    scores = _one("a red circle moving right", _track(colour, shape))
    assert scores["moving-strict"] == 0.0
    assert scores["moving-caption"] < credit + 0.25 - 1e-9 if colour == "blue" else scores["moving-caption"] == credit


def test_a_thing_that_was_not_asked_for_costs():
    scores = _one("a red circle moving right", _track(), _track("blue", "square", (16.0, 25.0), (0.0, 0.0)))
    assert scores["moving-strict"] == 0.0
    assert 0.74 <= scores["moving-caption"] < 1.0


def test_a_second_thing_of_the_same_colour_costs():
    scores = _one("a red circle moving right", _track(), _track(start=(8.0, 26.0)))
    assert scores["moving-strict"] == 0.0


def test_colour_everywhere_is_not_presence():
    flood = _one("a red circle that stays still", _track("red", "square", (16.0, 16.0), (0.0, 0.0), 30.0))
    assert flood["motion"] < 0.15


def test_a_score_is_the_same_alone_and_in_any_order(clean):
    order = seeded(3)[0].permutation(len(PROMPTS))
    for reward in (Motion(), Caption(), Strict()):
        whole = reward(clean, PROMPTS, GROUP)
        shuffled = reward(clean[torch.from_numpy(order)], [PROMPTS[i] for i in order], GROUP)
        alone = [reward(clean[i : i + 1], PROMPTS[i : i + 1], GROUP[:1])[0] for i in range(3)]
        np.testing.assert_array_equal(shuffled, whole[order])
        np.testing.assert_array_equal(alone, whole[:3])


@pytest.mark.parametrize("reward", [Motion, Caption, Strict])
def test_a_video_that_is_not_numbers_fails_alone(reward, clean):
    broken = clean[:3].clone()
    broken[1, 4, 0, 0, 0] = torch.nan
    scores = reward()(broken, PROMPTS[:3], GROUP[:3])
    assert np.isnan(scores).tolist() == [False, True, False]


def test_a_foreign_prompt_is_an_error(clean):
    with pytest.raises(ValueError, match="'a castle' is not a prompt"):
        Motion()(clean[:1], ["a castle"], GROUP[:1])


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 8, 3, 32, 32), (1, 9, 3, 16, 16)])
def test_what_is_no_video_of_the_world_is_an_error(shape):
    with pytest.raises((ValueError, Exception), match=r"videos must have shape|type hint"):
        Motion()(torch.zeros(shape), ["a red circle moving right"], GROUP[:1])


def test_rewards_say_that_they_score_videos():
    assert {reward.info.media for reward in REWARDS.values()} == {"video"}


def test_noise_scores_little():
    _, noise = seeded(0)
    scores = _means(torch.zeros(80, 9, 3, 32, 32).uniform_(generator=noise))
    assert scores["motion"] < 0.3
    assert scores["moving-strict"] == 0.0


def test_features_tell_motion_from_rest_and_depend_on_nothing_else(clean):
    features = Motion().features(clean)
    assert features.shape == (80, 540)
    assert features.dtype == torch.float32
    torch.testing.assert_close(Motion().features(clean[5:6]), features[5:6], rtol=0, atol=0)
    still = _frames([Video(tracks=tuple(moving._stalled(t, 0) for t in v.tracks), ground=v.ground) for v in _videos()])
    apart = (Motion().features(still) - features).norm(dim=1)
    moves = torch.tensor([moving.parse(prompt).category != "still" for prompt in PROMPTS])
    assert apart[moves].min() > 0.2
    assert apart[~moves].max() < 1e-5
    assert float(features.square().mean()) == pytest.approx(1.0, abs=0.3)
