"""Tiny scorers of random weights, in the layout of the published files: to try a setting out, and to test with.

`bench make-tiny hpsv2.1 DIR` writes one, and `hpsv2.1(weights=DIR)` loads it by the path that real weights take.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from bench.noise import reproducible

MAKERS = {
    "aesthetic": "clips",
    "clip": "clips",
    "hpsv2.1": "clips",
    "pickscore": "clips",
    "imagereward": "imagereward",
    "unifiedreward": "unifiedreward",
    "videoalign": "videoalign",
}
"""Scorer -> the module that has its `make_<name>`, without what is no letter or digit."""


def make(scorer: str, folder: Path, seed: int = 0) -> None:
    """Write a tiny scorer's files.

    Args:
        scorer: one of `MAKERS`.
        folder: is made; may be there.
        seed: of the weights.
    """
    import torch

    module = import_module(f"{__name__}.{MAKERS[scorer]}")
    name = "".join(char for char in scorer if char.isalnum())
    folder.mkdir(parents=True, exist_ok=True)
    with reproducible(seed, torch.device("cpu")):
        getattr(module, f"make_{name}")(folder)
