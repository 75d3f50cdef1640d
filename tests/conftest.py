"""What many tests need: random pipelines of the real classes that cost milliseconds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Keep what tests encode out of the user's cache; processes that they start inherit it."""
    folder = tempfile.TemporaryDirectory(prefix="arbor-cache-")
    os.environ["ARBOR_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def random_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `FluxPipeline.from_pretrained` loads, of random weights."""
    return written("flux", tmp_path_factory)


@pytest.fixture(scope="session")
def random_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `StableDiffusion3Pipeline.from_pretrained` loads, of random weights."""
    return written("sd3", tmp_path_factory)


@pytest.fixture(scope="session")
def random_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `WanPipeline.from_pretrained` loads, of random weights."""
    return written("wan", tmp_path_factory)


@pytest.fixture(scope="session")
def random_wan_i2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `WanImageToVideoPipeline.from_pretrained` loads, of random weights."""
    return written("wan-i2v", tmp_path_factory)


def written(kind: str, folders: pytest.TempPathFactory) -> Path:
    from bench.models.tiny import make_tiny

    folder = folders.mktemp(f"random-{kind}")
    make_tiny(kind, folder, seed=0)
    return folder
