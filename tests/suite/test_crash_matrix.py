"""Driver and workers killed together, by the real command line: two kills of `python tests/crash_matrix.py`."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from crash_matrix import CALLS, KILLER, Kill, survived, uninterrupted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="whom to kill is read from /proc"),
]


@pytest.fixture(scope="module")
def reference(random_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return uninterrupted(random_flux, tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize(("phase", "call"), [("update", 4), ("checkpoint", 2)])
def test_a_run_killed_in_a_phase_ends_with_the_records_of_one_that_was_not(
    phase: str, call: int, reference: dict[str, Any], random_flux: Path, tmp_path: Path
):
    found = survived(random_flux, tmp_path, Kill(phase=phase, call=call, after=0.5), reference)

    assert found.as_meant, found
    assert found.equal, found
    assert found.statuses == [0]


def test_the_uninterrupted_run_has_all_that_is_compared(reference: dict[str, Any]):
    cells = {name.split("/")[0] for name in reference if name.endswith("DONE")}
    assert len(cells) == 3
    for cell in cells:
        assert len(reference[f"{cell}/metrics.jsonl"]) == 5
        assert {"evaluation", "drift", "calls"} <= reference[f"{cell}/result.json"].keys()
        assert f"{cell}/config.yaml" in reference
        assert {f"{cell}/samples/{done:06d}/000.png" for done in (2, 4, 5)} <= reference.keys()
        assert f"{cell}/pipeline/transformer/diffusion_pytorch_model.safetensors" in reference
    assert any(name.startswith("base-") and name.endswith("features.npz") for name in reference)


def test_every_phase_is_where_the_killer_waits_for_it():
    phases = runpy.run_path(str(KILLER / "sitecustomize.py"), run_name="looked_at")["PHASES"]
    assert phases.keys() == CALLS.keys()
    for module, name in phases.values():
        assert callable(getattr(importlib.import_module(module), name)) or name == "torch"
