from __future__ import annotations

import numpy as np
import pytest

from bench.prune import above_extremes, below_best_child, sliding
from bench.tree import forest


def test_a_window_slides_and_stays_before_the_last_step():
    starts = [sliding(10, 4, 30, i, 20).start for i in (0, 29, 30, 149, 150, 299)]
    assert starts == [10, 10, 11, 14, 15, 15]
    assert list(sliding(10, 4, 30, 10_000, 20)) == [15, 16, 17, 18]


def test_a_window_longer_than_the_path_is_refused():
    assert list(sliding(4, 3, 1, 0, 8)) == [4, 5, 6]
    with pytest.raises(ValueError, match="longer than the path of 8 steps"):
        sliding(5, 3, 1, 0, 8)


def test_the_better_child_keeps_its_chain():
    tree = forest([2, 2, 1], slots=1)
    score = np.array([0, 0, 0, 5.0, 7, 2, 1, 0, 0, 0, 0])
    assert np.flatnonzero(below_best_child(tree, score, 2)).tolist() == [4, 5, 8, 9]


def test_a_failed_child_never_beats_a_scored_one_and_the_first_of_equals_wins():
    tree = forest([2], slots=2)
    assert np.flatnonzero(below_best_child(tree, np.array([0, 0, -np.inf, -9, 3, 3.0]), 1)).tolist() == [3, 4]


def test_extremes_keep_a_quarter_of_each_trees_leaves_at_either_end():
    tree = forest([8], slots=2)
    reward = np.array([3.0, 9, 1, 4, 8, 2, 7, 5, *range(100, 108)])
    # Leaves are nodes 2..9 and 10..17; kept are rewards 1, 2, 8, 9 and 100, 101, 106, 107, and both roots.
    expected = [0, 1, 3, 4, 6, 7, 10, 11, 16, 17]
    assert np.flatnonzero(above_extremes(tree, tree.leaves(), reward)).tolist() == expected


def test_a_failed_leaf_is_no_extreme():
    tree = forest([8], slots=1)
    reward = np.array([np.nan, 9, 1, 4, 8, 2, np.nan, 5])
    assert np.flatnonzero(above_extremes(tree, tree.leaves(), reward)).tolist() == [0, 2, 3, 5, 6]
