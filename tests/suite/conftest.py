"""Suites on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import Zygote, arguments, written

from bench.suite import Suite

Make = Callable[..., Suite]


@pytest.fixture(scope="session")
def make(random_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make("dance", steps=4)` is a suite on disk, its cells unfinished; each call has a folder of its own."""

    def making(algos: str = "dance", *, rewards: str = "soft", words: Sequence[str] = (), **changes: Any) -> Suite:
        return written(arguments(random_flux, algos, rewards, words, changes), tmp_path_factory.mktemp("runs"))

    return making


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """`zygote.run(job(suite))` runs a worker in a process of its own."""
    running = Zygote()
    yield running
    running.stop()
