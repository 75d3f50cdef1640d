"""Identity (ix) on a real transformer: sharing a parent's pass leaves the gradient as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from oracle.edges import edge_gradient
from tiny import square
from toy import RecordingSGD, context, iteration_of, normal, trainer

from algorithms.branch import Branch
from bench.models.flux import Flux
from bench.policy import Condition
from bench.update import update


def test_one_pass_a_parent_gives_the_sum_of_the_gradients_of_single_edges(random_flux: Path):
    policy = Flux(random_flux, square(16, guidance=3.5))
    condition = Condition(tensors=(normal(2, 64, key=1), normal(2, 7, 64, key=2)))
    algorithm = Branch(splits=(0, 1), eta=1.0)
    it = iteration_of(policy, algorithm, context(steps=4, slots=2, group_size=4), condition)
    assert len(it.selection.read) < len(it.selection.item_node)
    expected = edge_gradient(policy, it)
    gradients = []
    for chunk in (1, 100):
        t = trainer(policy, lr=0.0)
        update(t, algorithm, it, updates=1, chunk=chunk, anchor="rollout", clip=algorithm.clip)
        assert isinstance(t.optimizer, RecordingSGD)
        gradients += t.optimizer.seen
    scale = float(expected.abs().max())
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * scale)
