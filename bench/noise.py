"""The only source of randomness, keyed by what a number is for.

A draw depends on (seed, stream, iteration, slot, root, depth, child path) and on nothing else: not on the
algorithm, the batch size, the number of processes, or what was drawn before. So arms share their noise as far as
their trees agree, and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from bench.tree import Tree

STREAMS = ("root", "edge", "shared", "forward", "select", "prompts", "shards", "lora", "text", "eval", "eval-reference")

Key: TypeAlias = tuple[Any, ...]
"""A stream's name and the numbers of the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A seed and an iteration; methods draw for the nodes of a tree."""

    seed: int
    iteration: int
    root_stream: str = "root"
    """`eval` and `eval-reference` draw roots that no training rollout sees."""

    def generator(self, stream: str, *key: int) -> np.random.Generator:
        """Return the generator of a key; equal keys give equal numbers."""
        return keyed(self.seed, stream, self.iteration, *key)

    def roots(
        self, tree: Tree, coupling: Float[np.ndarray, " node"], shape: Sequence[int]
    ) -> Float[np.ndarray, "root *latent"]:
        """Return the roots' standard normals, correlated within a slot by `coupling`."""
        slot, rank = tree.slot.tolist(), tree.rank().tolist()

        def own(root: int) -> Key:
            return self.root_stream, slot[root], rank[root]

        def shared(root: int) -> Key:
            return self.root_stream, slot[root], -1

        return self._coupled(range(int(tree.offset[1])), coupling, shape, own, shared)

    def edges(
        self, tree: Tree, node: Int[np.ndarray, " edge"], coupling: Float[np.ndarray, " node"], shape: Sequence[int]
    ) -> Float[np.ndarray, "edge *latent"]:
        """Return the standard normals of the edges into `node`.

        Siblings follow BranchGRPO eq. (2): sqrt(rho)*xi_0 + sqrt(1-rho)*eta_b, with xi_0 their parent's draw; every
        marginal stays that of the plain SDE.
        """
        path, slot, depth = child_path(tree).tolist(), tree.slot.tolist(), tree.depth.tolist()
        parent = tree.parent.tolist()

        def own(n: int) -> Key:
            return "edge", slot[n], depth[n], path[n]

        def shared(n: int) -> Key:
            return "shared", slot[n], depth[n], path[parent[n]]

        return self._coupled(node.tolist(), coupling, shape, own, shared)

    def forward(
        self, slot: Int[np.ndarray, " query"], draw: Int[np.ndarray, " query"], shape: Sequence[int]
    ) -> Float[np.ndarray, "query *latent"]:
        """Return the noise of forward-process queries; queries of one slot and draw share it."""
        keys = zip(slot.tolist(), draw.tolist(), strict=True)
        return np.stack([self.generator("forward", *key).standard_normal(shape, np.float32) for key in keys])

    def _coupled(
        self,
        rows: Sequence[int],
        coupling: Float[np.ndarray, " node"],
        shape: Sequence[int],
        own: Callable[[int], Key],
        shared: Callable[[int], Key],
    ) -> Float[np.ndarray, "row *latent"]:
        out = np.empty((len(rows), *shape), np.float32)
        normals = Rekeyed()

        def draw(key: Key, into: np.ndarray) -> np.ndarray:
            stream, *rest = key
            return normals.at(self.seed, stream, self.iteration, *rest).standard_normal(out=into, dtype=np.float32)

        xi_0, xi_0_of = np.empty(shape, np.float32), None
        for i, row in enumerate(rows):
            rho = float(coupling[row])
            draw(own(row), out[i])
            if rho > 0:
                if xi_0_of != shared(row):  # siblings stand side by side
                    xi_0_of = shared(row)
                    draw(xi_0_of, xi_0)
                out[i] = math.sqrt(rho) * xi_0 + math.sqrt(1 - rho) * out[i]
        return out


@lru_cache(maxsize=2)
def child_path(tree: Tree) -> Int[np.ndarray, " node"]:
    """Return a 63-bit name of each node within its slot: its root's rank, then its rank at every fan-out above it.

    Continuing a path leaves the name as it is, so chains and trees of different algorithms share noise where their
    branches correspond.
    """
    rank, fanout = tree.rank().astype(np.uint64), tree.fanout()
    path = _mix(np.zeros(len(tree), np.uint64), rank)
    for d in range(1, tree.steps + 1):
        level, parent = tree.level(d), tree.parent[tree.level(d)]
        path[level] = np.where(fanout[parent] > 1, _mix(path[parent], rank[level]), path[parent])
    return (path >> np.uint64(1)).astype(np.int64)


def keyed(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Return a generator whose numbers depend on the key alone.

    Raises:
        ValueError: for a stream that is not one of `STREAMS`.
    """
    return Rekeyed().at(seed, stream, *key)


class Rekeyed:
    """One generator, set to key after key: making one costs more than the normals of a small latent."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._start = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, seed: int, stream: str, *key: int) -> np.random.Generator:
        """Return the generator at the first number of a key; it is the same object every time."""
        if stream not in STREAMS:
            raise ValueError(f"unknown stream {stream!r}; streams: {', '.join(STREAMS)}")
        packed = struct.pack(f"<{len(key) + 1}q", seed, *key)
        digest = hashlib.blake2b(packed, digest_size=16, key=stream.encode()).digest()
        self._start["state"]["key"][:] = np.frombuffer(digest, np.uint64)
        self._bits.state = self._start
        return self._generator


@contextmanager
def reproducible(seed: int, device: Any) -> Iterator[None]:
    """Let what torch draws on its own inside, a new model's weights, be fixed by the seed; build it on `device`.

    Generators outside are as they were before.
    """
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        yield


def _mix(path: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of (path, rank), as in SplitMix64."""
    z = path + np.uint64(0x9E3779B97F4A7C15) * (rank + np.uint64(1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
