from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.policy import Condition, in_chunks


@given(st.integers(0, 200), st.integers(1, 50))
def test_chunks_cover_all_rows_evenly_and_none_is_too_large(rows, size):
    chunks = in_chunks(rows, size)
    assert [i for c in chunks for i in range(c.start, c.stop)] == list(range(rows))
    lengths = [c.stop - c.start for c in chunks]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(chunks) == max(1, -(-rows // size))


def test_rows_of_a_condition_may_repeat():
    condition = Condition(tensors=(torch.arange(6.0).view(3, 2), torch.arange(3.0)))
    first, second = condition.rows(torch.tensor([2, 0, 2])).tensors
    assert first.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert second.tolist() == [2, 0, 2]
