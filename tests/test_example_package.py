"""The package that people copy: it installs, is found by its entry points, and keeps what it promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import arguments

from bench.conformance import CHECKS, Subject, subjects
from bench.registry import load

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "examples" / "arbor-example"
MODULE = PACKAGE / "arbor_example.py"


@cache
def rank() -> Subject:
    (found,) = subjects(str(MODULE))
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_algorithm_keeps_the_contract(check):
    check(rank())


def leaf_advantages(*reward: float) -> np.ndarray:
    """Return the advantages of the leaves of groups of four."""
    case = next(c for c in rank().cases if c.ctx.group_size == 4)
    ctx = case.cell.context(0, range(len(reward) // 4), {})
    plan = case.algorithm.plan(ctx)
    leaf = plan.tree.leaves()
    outcome = type(case.outcome)(log_prob=np.zeros(len(plan.tree)), reward=np.array(reward), leaf=leaf)
    return case.algorithm.credit(plan, outcome, ctx)[leaf]


def test_advantages_are_ranks_of_unit_std():
    found = leaf_advantages(0.1, 0.4, 0.2, 0.3)

    np.testing.assert_allclose(found, np.array([-1.5, 1.5, -0.5, 0.5]) / np.std([1, 2, 3, 4], ddof=1))


def test_an_outlier_sways_nothing():
    np.testing.assert_array_equal(leaf_advantages(0.1, 1e9, 0.2, 0.3), leaf_advantages(0.1, 0.4, 0.2, 0.3))


def test_groups_are_ranked_apart():
    both = leaf_advantages(0.1, 0.4, 0.2, 0.3, 1004.0, 1003.0, 1002.0, 1001.0)

    np.testing.assert_array_equal(both[:4], leaf_advantages(0.1, 0.4, 0.2, 0.3))
    np.testing.assert_array_equal(both[4:], leaf_advantages(4.0, 3.0, 2.0, 1.0))


def test_equal_rewards_have_equal_advantages():
    np.testing.assert_array_equal(leaf_advantages(0.5, 0.5, 0.5, 0.5), 0.0)
    low, high, tie, also = leaf_advantages(0.1, 0.9, 0.5, 0.5)
    assert (tie, also) == (0.0, 0.0)
    assert low == -high < 0


def test_a_failed_leaf_is_nan_and_the_others_are_ranked_without_it():
    found = leaf_advantages(0.1, np.nan, 0.2, 0.3)

    np.testing.assert_allclose(found, [-1.0, np.nan, 0.0, 1.0])


def colourful(*colour: tuple[float, float, float]) -> np.ndarray:
    images = torch.tensor(colour)[:, :, None, None].expand(-1, 3, 4, 4)
    return load("rewards", [MODULE]).get("colourful")()(images, ["a"] * len(colour), np.zeros(len(colour), int))


def test_the_reward_is_the_mean_saturation():
    found = colourful((1.0, 0.0, 0.0), (0.4, 0.4, 0.4), (0.0, 0.0, 0.0), (0.8, 0.4, 0.6))

    np.testing.assert_allclose(found, [1.0, 0.0, 0.0, 0.5], atol=1e-6)
    assert found.dtype == np.float64


def test_an_image_that_is_no_image_has_no_score():
    found = colourful((1.0, np.nan, 0.0), (np.inf, 0.0, 0.0), (1.0, -np.inf, 0.0), (1.0, 0.0, 0.0))

    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False])


def test_the_readme_fits_on_a_screen():
    assert len((PACKAGE / "README.md").read_text().splitlines()) <= 40


def run(python: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Return a process of that environment, with nothing of this one's and no network to turn to."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))}
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [str(python), *words], cwd=cwd, env=clean | offline, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that has the package, and beside it sees all that this one has."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    places = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # addsitedir, unlike a plain path, heeds the .pth files there: an editable install of arbor-bench is one.
    lines = [str(ROOT), *(f"import site; site.addsitedir({path!r})" for path in sorted(ours))]
    Path(places.stdout.strip(), "of_the_tests.pth").write_text("\n".join(lines) + "\n")
    shutil.copytree(PACKAGE, folder / "arbor-example", ignore=shutil.ignore_patterns("__pycache__"))
    words = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "./arbor-example")
    installed = run(python, *words, cwd=folder)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    shutil.rmtree(folder / "arbor-example")  # what runs is what was installed
    return python


@pytest.mark.slow
def test_an_installed_package_is_listed(python: Path, tmp_path: Path):
    listed = run(python, "-m", "bench.run", "list", cwd=tmp_path)

    assert (listed.returncode, listed.stderr) == (0, "")
    assert {"rank", "colourful", "dance", "soft"} <= {line.split()[0] for line in listed.stdout.splitlines()}


@pytest.mark.slow
def test_an_installed_package_runs_to_its_end(python: Path, random_flux: Path, tmp_path: Path):
    words = arguments(random_flux, "rank", "colourful", ["--jobs", "1"], {"iterations": 2})
    process = run(python, "-m", "bench.run", *words, cwd=tmp_path)

    assert (process.returncode, process.stderr) == (0, ""), process.stderr
    (done,) = (tmp_path / "runs" / "tiny").glob("*/DONE")
    result: dict[str, Any] = json.loads((done.parent / "result.json").read_text())
    assert "colourful" in json.dumps(result)
    assert "colourful" in process.stdout
