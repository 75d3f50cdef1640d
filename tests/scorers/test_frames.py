import numpy as np
import pytest

from bench.scorers.frames import sampled


@pytest.mark.parametrize(
    ("count", "fps", "chosen"),
    [
        (81, 16.0, 10),
        (33, 16.0, 4),
        (53, 8.0, 14),
        (45, 8.0, 12),
        (41, 8.0, 10),
        (9, 16.0, 4),
        (5, 16.0, 4),
        (3, 16.0, 2),
        (2, 8.0, 2),
        (16000, 16.0, 768),
    ],
)
def test_an_even_number_of_frames_is_seen_about_two_a_second(count, fps, chosen):
    at = sampled(count, fps, 2.0)
    assert len(at) == chosen
    assert (at[0], at[-1]) == (0, count - 1)
    assert (np.diff(at) >= 1).all()


def test_frames_are_those_of_the_published_sampling():
    assert sampled(81, 16.0, 2.0) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert sampled(33, 16.0, 2.0) == [0, 11, 21, 32]
    assert sampled(53, 8.0, 2.0) == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52]


def test_one_frame_is_no_video():
    with pytest.raises(ValueError, match="1 frame has no motion"):
        sampled(1, 16.0, 2.0)
