"""What an option of training changes, and that it changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Zygote, facts, job, square

from bench.policy import encoded
from bench.suite import Suite

pytestmark = pytest.mark.slow

LORA = {"lora_rank": 2, "iterations": 2}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"ema": 0.9, "iterations": 2},
    "checkpointing": {"ema": 0.9, "iterations": 2, "gradient_checkpointing": True},
    "average on the cpu": {"ema": 0.9, "iterations": 2, "ema_device": "cpu"},
    "bf16": {"ema": 0.9, "iterations": 2, "precision": "bf16"},
    "lora": LORA,
    "lora of another scale": LORA | {"lora_alpha": 1.0},
    "lora, untrained": LORA | {"lr": 1e-30, "weight_decay": 0.0},
}


@pytest.fixture(scope="module")
def suites(make, zygote: Zygote) -> dict[str, Suite]:
    made = {name: make("dance", **keys) for name, keys in CASES.items()}
    assert zygote.run(*(job(suite) for suite in made.values())) == [[0]] * len(made)
    return made


def folder_of(suite: Suite) -> Path:
    return suite.folder / suite.cells[0].folder


def result(suite: Suite) -> dict[str, Any]:
    return json.loads((folder_of(suite) / "result.json").read_text())


def checkpoint(suite: Suite) -> dict[str, Any]:
    return torch.load(folder_of(suite) / "checkpoints" / "000002.pt", weights_only=True)


@pytest.mark.parametrize("option", ["checkpointing", "average on the cpu"])
def test_what_saves_memory_moves_no_number(suites, option: str):
    told, plain = facts(suites[option]), facts(suites["plain"])
    for part in (told, plain):
        for key in ("hash", "base", "shared", "effective"):  # the option itself
            part["result"].pop(key)
    assert told == plain


def test_the_moving_average_is_kept_where_it_is_said(suites):
    from bench.loop import average_device

    where = {
        name: average_device(suites[name].shared, torch.device("cuda:1")) for name in ("plain", "average on the cpu")
    }
    assert where == {"plain": torch.device("cuda:1"), "average on the cpu": torch.device("cpu")}


def test_gradient_checkpointing_is_on_where_it_is_asked_for(suites):
    from bench.worker import Worker

    def on(name: str) -> Any:
        worker = Worker(suite=suites[name].folder, device=torch.device("cpu"))
        return worker.trainable(suites[name].cells[0]).model.is_gradient_checkpointing

    assert on("checkpointing")
    assert not on("plain")


def test_gradient_checkpointing_computes_the_blocks_again(random_flux: Path, monkeypatch: pytest.MonkeyPatch):
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    from bench.models.flux import Flux
    from bench.policy import enable_gradient_checkpointing

    policy = Flux(random_flux, square(32, guidance=3.5))
    condition = encoded(policy, ["a red circle"])
    calls, forward = [], FluxTransformerBlock.forward
    monkeypatch.setattr(
        FluxTransformerBlock, "forward", lambda self, *a, **k: (calls.append(0), forward(self, *a, **k))[1]
    )

    def blocks() -> int:
        calls.clear()
        policy.velocity(torch.ones(1, *policy.latent_shape), torch.ones(1), condition).sum().backward()
        return len(calls)

    once = blocks()
    enable_gradient_checkpointing(policy)
    assert blocks() == 2 * once > 0


def test_a_model_that_cannot_compute_again_is_refused():
    from toy import ToyPolicy

    from bench.policy import enable_gradient_checkpointing

    with pytest.raises(ValueError, match="leave it off"):
        enable_gradient_checkpointing(ToyPolicy())


def test_bf16_moves_the_forwards_and_keeps_weights_and_moments_in_fp32(suites):
    half, plain = checkpoint(suites["bf16"]), checkpoint(suites["plain"])
    assert {t.dtype for t in half["parameters"]} == {torch.float32}
    assert {m["exp_avg"].dtype for m in half["optimizer"]["state"].values()} == {torch.float32}
    rows = [json.loads(line) for line in (folder_of(suites["bf16"]) / "metrics.jsonl").read_text().splitlines()]
    exact = [json.loads(line) for line in (folder_of(suites["plain"]) / "metrics.jsonl").read_text().splitlines()]
    assert 0 < abs(rows[0]["reward_total"] - exact[0]["reward_total"]) < 0.05
    assert any(not torch.equal(a, b) for a, b in zip(half["parameters"], plain["parameters"], strict=True))


def test_lora_trains_adapters_of_attention_alone(suites):
    saved = load_file(folder_of(suites["lora"]) / "lora" / "pytorch_lora_weights.safetensors")
    assert not (folder_of(suites["lora"]) / "pipeline").exists()
    state = checkpoint(suites["lora"])
    assert len(saved) == len(state["parameters"])
    assert all(".attn." in name for name in saved)
    assert {min(t.shape) for t in saved.values()} == {2}


def test_untrained_adapters_leave_the_base_as_it_is(suites):
    suite = suites["lora, untrained"]
    base = json.loads((suite.folder / result(suite)["base"] / "result.json").read_text())
    assert result(suite)["evaluation"] == base["evaluation"]
    assert result(suites["lora"])["evaluation"] != base["evaluation"]


@pytest.mark.parametrize("case", ["lora", "lora of another scale"])
def test_diffusers_loads_the_adapters_as_they_were_trained(suites, random_flux: Path, case: str):
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    from bench.judge import load_weights
    from bench.lora import add_lora
    from bench.models.flux import Flux

    shared = suites[case].shared
    ours = Flux(random_flux, square(32, guidance=3.5))
    condition = encoded(ours, ["a red circle"])
    x, sigma = torch.ones(1, *ours.latent_shape), torch.full((1,), 0.5)
    theirs = Flux(random_flux, square(32, guidance=3.5))
    untrained = ours.velocity(x, sigma, condition)
    add_lora(ours, rank=2, alpha=shared.lora_alpha or 4.0, seed=0)
    load_weights(ours, checkpoint(suites[case])["parameters"])
    pipe = FluxPipeline.from_pretrained(random_flux)
    pipe.load_lora_weights(str(folder_of(suites[case]) / "lora"))
    theirs.model = pipe.transformer
    assert not torch.allclose(ours.velocity(x, sigma, condition), untrained, atol=1e-4)
    torch.testing.assert_close(theirs.velocity(x, sigma, condition), ours.velocity(x, sigma, condition))


def test_adapters_begin_alike_in_every_arm_and_unlike_in_every_seed(random_flux: Path):
    from bench.lora import add_lora
    from bench.models.flux import Flux

    def first(seed: int) -> torch.Tensor:
        policy = Flux(random_flux, square(32, guidance=3.5))
        add_lora(policy, rank=2, alpha=4.0, seed=seed)
        return next(p for p in policy.model.parameters() if p.requires_grad).detach()

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert first(0).std() == pytest.approx(0.5, rel=0.3)


def test_a_family_without_layers_for_adapters_is_refused():
    from toy import ToyPolicy

    from bench.lora import add_lora

    with pytest.raises(ValueError, match="lora_targets"):
        add_lora(ToyPolicy(), rank=2, alpha=4.0, seed=0)


def test_trackers_are_told_every_row(make, zygote: Zygote):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    suite = make("dance", iterations=2)
    assert zygote.run(job(suite, trackers=["tensorboard", "wandb", "mlflow"])) == [[0]]
    folder = folder_of(suite)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(folder / "trackers" / suite.folder.name)).Reload()
    told = [(event.step, event.value) for event in board.Scalars("reward/soft")]
    assert told == [(row["iteration"], pytest.approx(row["reward"]["soft"])) for row in rows]
    flow = next((suite.folder / "mlruns").rglob("metrics/grad_norm")).read_text().splitlines()
    assert [float(line.split()[1]) for line in flow] == [row["grad_norm"] for row in rows]
    assert next((folder / "trackers").rglob("*.wandb")).stat().st_size > 1000


def test_no_tracker_is_told_unless_it_is_named(suites):
    assert not (folder_of(suites["plain"]) / "trackers").exists()
