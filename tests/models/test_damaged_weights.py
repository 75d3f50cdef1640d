"""Weights that are there but not whole: what libraries would fill with random numbers is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import square

from bench.models.flux import Flux


def without_a_tensor(folder: Path, part: str) -> None:
    """Drop the last tensor of a part."""
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_part_that_lacks_a_tensor_is_refused_by_name(random_flux, tmp_path, part):
    folder = tmp_path / "flux"
    shutil.copytree(random_flux, folder)
    without_a_tensor(folder, part)
    with pytest.raises(RuntimeError, match=rf"{part} lacks [12] tensors"):
        Flux(folder, square(16)).encoder()
