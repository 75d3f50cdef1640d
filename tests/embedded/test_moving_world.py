import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.embedded import moving
from bench.embedded.training import seeded

SCENES = tuple(moving.scenes())
PICKS = st.sampled_from(SCENES)
DIGESTS = {"base": "df58baa54616", "train": "27715857a481", "tune": "754c81a3e4f5", "heldout": "4e528094abfe"}


def _video(scene, seed):
    return moving.draw(scene, seeded(seed)[0])


def _centres(video):
    return np.array([(track.x, track.y) for track in video.tracks])


def test_caption_and_parse_are_inverse_on_the_whole_world():
    captions = [moving.caption(scene) for scene in SCENES]
    assert len(set(captions)) == len(captions) == 35 * (1 + 12) + 35 * 30 * 16
    assert tuple(map(moving.parse, captions)) == SCENES


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red circle",
        "a red circle moving",
        "a red circle moving right quickly",
        "a red circle moving right and a red square moving up",
        "a red circle moving right and a blue square that stays still",
        "a red circle moving right fast and a blue square moving up",
        "a red circle moving right and a blue square moving up and a green ring moving up",
    ],
)
def test_a_prompt_of_another_world_is_refused_with_examples(prompt):
    with pytest.raises(ValueError, match="write 'a red circle moving right'"):
        moving.parse(prompt)


def test_splits_have_their_sizes_and_are_balanced():
    assert [len(moving.prompts(split)) for split in ("train", "tune", "heldout")] == [32, 16, 80]
    for split in ("train", "tune", "heldout"):
        start = [moving.parse(prompt).category for prompt in moving.prompts(split)[:8]]
        assert start == [*moving.CATEGORIES] * 2
    assert set(moving.prompts("train")) <= set(moving.prompts("base"))


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="no split 'test'"):
        moving.prompts("test")


@pytest.mark.parametrize("split", ["tune", "heldout"])
def test_what_is_held_out_is_nowhere_else_under_any_wording(split):
    def shown(name):
        return {frozenset(moving.parse(prompt).moves) for prompt in moving.prompts(name)}

    others = set().union(*(shown(other) for other in moving.SPLITS if other != split))
    assert len(shown(split)) == len(moving.prompts(split))
    assert not shown(split) & others


def test_the_splits_are_those_the_shipped_model_was_made_with():
    texts = ["\n".join(moving.prompts(split)) for split in moving.SPLITS]
    assert {
        s: hashlib.sha256(t.encode()).hexdigest()[:12] for s, t in zip(moving.SPLITS, texts, strict=True)
    } == DIGESTS


@settings(deadline=None, max_examples=40)
@given(PICKS, st.integers(0, 2**32))
def test_things_move_as_their_prompt_says_and_stay_inside(scene, seed):
    video = _video(scene, seed)
    centres = _centres(video)
    for move, track, centre in zip(scene.moves, video.tracks, centres, strict=True):
        way, far = np.array(moving.WAYS[move.way] if move.way else (0, 0)), centre[:, -1] - centre[:, 0]
        low, high = moving.PACES[move.pace] if move.way else (0.0, 0.0)
        assert low - 1e-9 <= way @ far <= high + 1e-9
        np.testing.assert_allclose(far, way * (way @ far), atol=1e-9)
        np.testing.assert_allclose(np.diff(centre, axis=1), np.tile(far[:, None] / 8, 8), atol=1e-9)
        assert track.radius <= centre.min()
        assert centre.max() <= 31 - track.radius
    if len(centres) == 2:
        gap = np.hypot(*(centres[0] - centres[1])).min()
        assert gap > sum(track.radius for track in video.tracks)


@settings(deadline=None, max_examples=20)
@given(st.lists(PICKS, min_size=2, max_size=4), st.integers(0, 2**32))
def test_a_video_looks_the_same_alone_and_among_others(scenes, seed):
    videos = [_video(scene, seed + index) for index, scene in enumerate(scenes)]
    together = moving.render(videos)
    assert together.dtype == np.float32
    assert together.shape == (len(scenes), 9, 3, 32, 32)
    assert 0.0 <= together.min()
    assert together.max() <= 1.0
    for video, frames in zip(videos, together, strict=True):
        np.testing.assert_array_equal(moving.render([video])[0], frames)


def test_the_same_seed_draws_the_same_video():
    assert _video(SCENES[-1], 5) == _video(SCENES[-1], 5) != _video(SCENES[-1], 6)


def test_what_stays_still_is_the_same_picture_nine_times():
    frames = moving.render([_video(moving.parse("a red circle that stays still"), 0)])[0]
    assert (frames == frames[:1]).all()


def test_carelessness_has_the_documented_shares():
    rng = seeded(0)[0]
    clean = [_video(moving.parse("a red circle moving right"), seed) for seed in range(2000)]
    careless = [moving.corrupt(video, rng) for video in clean]
    stalled = [video.tracks[0].x[-1] < before.tracks[0].x[-1] for video, before in zip(careless, clean, strict=True)]
    steps = [int((np.diff(video.tracks[0].x) > 0).sum()) for video in careless]
    faded = [video.fade for video in careless if video.fade > 0]
    assert np.mean(stalled) == pytest.approx(0.6, abs=0.04)
    assert set(steps) == {0, 1, 2, 3, 4, 8}
    assert len(faded) / 2000 == pytest.approx(0.6, abs=0.04)
    assert np.mean(faded) == pytest.approx(0.3, abs=0.02)


def test_importing_the_world_of_videos_imports_no_torch():
    code = "import sys, bench.embedded.moving; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
