"""Several processes, each with the whole model or with a part of it, come to what one comes to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Zygote, arguments, job

from bench.suite import Suite

pytestmark = pytest.mark.slow

PLUGINS = {
    "fails_a_prompt": """
import numpy as np
from rewards.shapes import Soft


class FailsAPrompt(Soft):
    \"\"\"Cannot score the images of an iteration's first prompt: none of its slot is trained.\"\"\"

    def __call__(self, images, prompts, group):
        return np.where(group == 0, np.nan, super().__call__(images, prompts, group))


REWARDS = {"fails_a_prompt": FailsAPrompt}
""",
    "wrong_on_one": """
import os
import numpy as np
from rewards.shapes import Soft


class WrongOnOne(Soft):
    \"\"\"On one of the processes its answer has a score too few.\"\"\"

    def __call__(self, images, prompts, group):
        score = super().__call__(images, prompts, group)
        return score[1:] if os.environ.get("RANK") == "1" else score


REWARDS = {"wrong_on_one": WrongOnOne}
""",
    "raises": """
from algorithms.dance import Dance


class Raises(Dance):
    \"\"\"Gives no credit after the first iteration.\"\"\"

    def credit(self, plan, outcome, ctx):
        if ctx.iteration:
            raise ValueError("no credit today")
        return super().credit(plan, outcome, ctx)


ARMS = {"raises": Raises()}
""",
}
UNEVEN = {"prompts_per_iteration": 3, "iterations": 3, "checkpoint_every": 3, "micro_batch": 3, "ema": 0.9}
"""Slots and passes that two processes cannot share evenly."""
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dance": ("dance", "soft", UNEVEN),
    "branch, pruned": ("branch-widpru", "soft", UNEVEN),
    "several updates": ("mix", "soft", UNEVEN | {"prompts_per_iteration": 6, "updates_per_iteration": 3}),
    "recomputed": ("branch", "soft", UNEVEN | {"updates_per_iteration": 3, "anchor": "recompute"}),
    "old, reference": ("nft", "soft", UNEVEN),
    "units": ("vgrpo", "soft", UNEVEN),
    "a prompt that fails": ("dance", "fails_a_prompt", UNEVEN),
    "steps of its own": ("branch-official", "soft", UNEVEN | {"branch-official.splits": "[0,1]", "lr": "1e-4"}),
    "bf16": ("dance", "soft", UNEVEN | {"precision": "bf16"}),
    "adapters": ("dance", "soft", UNEVEN | {"lora_rank": 2, "gradient_checkpointing": True}),
}
LOOSER = {"bf16": 100.0}
"""Its rounding hangs on how many rows a matrix product sums over, and so on the batch."""
HOW = {"one": {}, "ddp": {"processes": 2, "parallel": "ddp"}, "fsdp2": {"processes": 2, "parallel": "fsdp2"}}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("plugins")
    for name, text in PLUGINS.items():
        (folder / f"{name}.py").write_text(text)
    return {name: str(folder / f"{name}.py") for name in PLUGINS}


def words(rewards: str, plugins: Mapping[str, str]) -> list[str]:
    return ["--plugin", plugins[rewards]] if rewards in plugins else []


@pytest.fixture(scope="module")
def suites(make, zygote: Zygote, plugins: Mapping[str, str]) -> dict[tuple[str, str], Suite]:
    """Every case, run in every way."""
    made = {
        (case, how): make(arm, rewards=rewards, words=words(rewards, plugins), **keys)
        for case, (arm, rewards, keys) in CASES.items()
        for how in HOW
    }
    codes = zygote.run(*(job(suite, **HOW[how]) for (_, how), suite in made.items()))
    assert codes == [[0] * HOW[how].get("processes", 1) for _, how in made]
    return made


def rows(suite: Suite) -> list[dict[str, Any]]:
    lines = (suite.folder / suite.cells[0].folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def state(suite: Suite, iterations: int) -> dict[str, Any]:
    folder = suite.folder / suite.cells[0].folder / "checkpoints"
    return torch.load(folder / f"{iterations:06d}.pt", weights_only=True)


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_come_to_what_one_comes_to(suites, case: str, how: str):
    one, two, looser = rows(suites[case, "one"]), rows(suites[case, how]), LOOSER.get(case, 1.0)
    assert len(one) == len(two) == 3
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5 * looser)
    for mine, theirs in zip(one, two, strict=True):
        assert mine["reward_total"] == pytest.approx(theirs["reward_total"], abs=1e-4 * looser)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3 * looser, abs=1e-5 * looser)
        assert mine["clip_fraction"] == pytest.approx(theirs["clip_fraction"], abs=0.02)
        for key in ("calls", "nfe", "samples", "failed", "failures"):
            assert mine[key] == theirs[key]


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_write_whole_weights_averages_and_moments(suites, case: str, how: str):
    one, two, looser = state(suites[case, "one"], 3), state(suites[case, how], 3), LOOSER.get(case, 1.0)
    assert one["optimizer_steps"] == two["optimizer_steps"]
    for key in ("parameters", "ema"):
        assert [t.shape for t in one[key]] == [t.shape for t in two[key]]
        torch.testing.assert_close(flat(two[key]), flat(one[key]), rtol=1e-3 * looser, atol=2e-4 * looser)
    first, second = (flat(m["exp_avg"] for m in s["optimizer"]["state"].values()) for s in (one, two))
    assert torch.linalg.norm(second - first) <= 1e-3 * looser * torch.linalg.norm(first)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_judge_as_one_does(suites, how: str):
    def found(suite: Suite) -> dict[str, Any]:
        return json.loads((suite.folder / suite.cells[0].folder / "result.json").read_text())

    one, two = found(suites["dance", "one"]), found(suites["dance", how])
    for name, scores in one["evaluation"].items():
        np.testing.assert_allclose(np.array(two["evaluation"][name]), np.array(scores), atol=1e-3)
    environment = suites["dance", how].folder / suites["dance", how].cells[0].folder / "environment.json"
    said = json.loads(environment.read_text())
    assert (said["processes"], said["parallel"]) == (2, how)


def test_the_gradient_of_the_first_update_is_that_of_one_process(make, zygote: Zygote):
    def gradient(suite: Suite) -> torch.Tensor:
        return flat(m["exp_avg"] for m in state(suite, 1)["optimizer"]["state"].values())

    made = {how: make("branch", **UNEVEN | {"iterations": 1}) for how in HOW}
    zygote.run(*(job(suite, **HOW[how]) for how, suite in made.items()))
    one = gradient(made["one"])
    for how in ("ddp", "fsdp2"):
        assert torch.linalg.norm(gradient(made[how]) - one) <= 1e-5 * torch.linalg.norm(one)


def test_a_cell_goes_on_under_another_number_of_processes(suites, make, zygote: Zygote):
    ways = [("ddp", "one"), ("one", "fsdp2"), ("fsdp2", "ddp")]
    made = [make("nft", **UNEVEN | {"checkpoint_every": 1}) for _ in ways]
    jobs = []
    for suite, (before, after) in zip(made, ways, strict=True):
        jobs += [job(suite, die=("between_iterations", 3), **HOW[before]), job(suite, **HOW[after])]
    codes = zygote.run(*jobs)
    assert all(set(code) == {-9} for code in codes[::2])
    assert all(set(code) == {0} for code in codes[1::2])
    whole = rows(suites["old, reference", "one"])
    for suite in made:
        assert [row["iteration"] for row in rows(suite)] == [0, 1, 2]
        for mine, theirs in zip(rows(suite), whole, strict=True):
            assert mine["reward_total"] == pytest.approx(theirs["reward_total"], abs=1e-4)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_what_fails_on_one_process_ends_the_run_and_is_told(make, zygote: Zygote, plugins):
    suite = make("dance", rewards="wrong_on_one", words=words("wrong_on_one", plugins), **UNEVEN)
    assert 1 in zygote.run(job(suite, processes=2))[0]
    error = (suite.folder / suite.cells[0].folder / "error.txt").read_text()
    assert "reward 'wrong_on_one' returned shape" in error


def test_what_fails_on_all_processes_fails_one_cell_and_the_others_run(make, zygote: Zygote, plugins):
    suite = make("raises,dance", words=["--plugin", plugins["raises"]], **UNEVEN)
    assert zygote.run(job(suite, processes=2)) == [[1, 1]]
    folders = [suite.folder / cell.folder for cell in suite.cells]
    assert "no credit today" in (folders[0] / "error.txt").read_text()
    assert (folders[1] / "DONE").is_file()


def test_torchrun_runs_a_suite_to_its_report(random_flux: Path, tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "bench.run"]
    words = arguments(random_flux, "dance,branch", changes={"iterations": 2})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "2 of 2 cells to run, one at a time, by 2 processes" in ran.stdout
    assert ran.stdout.count("report: ") == 1
    assert len(list((tmp_path / "runs" / "tiny").glob("*/DONE"))) == 2


CHILD = """
import time
from pathlib import Path
from bench.worker import stop_without_parent

stop_without_parent()
Path("there").touch()
time.sleep(300)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process runs is read from /proc")
def test_a_process_ends_when_the_one_that_started_it_is_killed(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip() / "stat"

    def within(seconds: float, so: Callable[[], bool]) -> bool:
        until = time.monotonic() + seconds
        while not so() and time.monotonic() < until:
            time.sleep(0.1)
        return so()

    def ended() -> bool:
        return not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    assert within(120, (tmp_path / "there").exists)
    assert not ended()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert within(30, ended)


def test_processes_that_are_not_all_there_are_told(monkeypatch: pytest.MonkeyPatch):
    from bench import processes

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "new_group", lambda **_: None)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda total, group: total.fill_(2))
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="torchrun started 3 processes, 2 of 2 are here"):
        processes.join(torch.device("cpu"))
