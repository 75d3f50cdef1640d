"""The memory estimate: sums that can be done by hand, and what is said of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from skeleton import write_skeleton

from bench.config import Shared
from bench.environment import gpu_bytes
from bench.memory import KEPT, estimate, gigabytes, remedies, tokens
from bench.models.catalog import FAMILIES
from bench.models.sizes import Sizes, sizes_of
from bench.models.source import CONFIGURATIONS

FLUX = FAMILIES["FluxPipeline"]
CONFIG = {"_class_name": "FluxTransformer2DModel", "num_layers": 2, "num_single_layers": 3}
SIZES = Sizes(
    model=10**9,
    projections=10**5,
    vae=10**7,
    encoders=10**8,
    config=CONFIG | {"num_attention_heads": 4, "attention_head_dim": 16},
    vae_config={"block_out_channels": [8, 8, 8, 8], "latent_channels": 4},
)
SHARED = Shared(resolution=64, micro_batch=2, prompts_per_iteration=4, group_size=4, steps=5, ema=0.0)
LATENTS = 4 * (4 * 4) * (4 + 2) * (4 * 8 * 8)
"""Bytes: of 16 images, at four trained steps and two more."""


def of(**changes: object) -> dict[str, float]:
    how = {key: changes.pop(key) for key in ("policies", "processes", "parallel") if key in changes}
    return dict(estimate(SIZES, FLUX, replace(SHARED, **changes), **how).phases)  # pyright: ignore[reportArgumentType]


def test_the_sequence_is_the_images_tokens_and_the_texts():
    assert tokens(SIZES, FLUX, SHARED) == 4 * 4 + 512


def test_all_weights_in_fp32_are_sixteen_bytes_a_parameter():
    unit = 2 * (16 + 512) * 64 * 4
    assert of()["update"] == 10**9 * (4 + 8 + 4) + 10**7 * 4 + LATENTS + unit * 5 * KEPT["FluxTransformer2DModel"]
    assert of()["encode"] == (10**9 + 10**7 + 10**8) * 4


def test_gradient_checkpointing_keeps_inputs_and_one_block():
    unit, k = 2 * (16 + 512) * 64 * 4, KEPT["FluxTransformer2DModel"]
    assert of()["update"] - of(gradient_checkpointing=True)["update"] == unit * (5 * k - (5 + k))


def test_averages_and_other_policies_are_four_bytes_each():
    base = of()["update"]
    assert of(ema=0.9)["update"] - base == 4 * 10**9
    assert of(ema=0.9, ema_device="cpu")["update"] == base
    assert of(policies=2)["update"] - base == 8 * 10**9


def test_adapters_train_few_and_freeze_the_rest_in_bf16():
    found = of(lora_rank=8, frozen="bf16", precision="bf16")
    unit, k = 2 * (16 + 512) * 64 * 2, KEPT["FluxTransformer2DModel"]
    assert found["update"] == 2 * 10**9 + 16 * 8 * 10**5 + 2 * 10**7 + LATENTS + unit * 5 * k


def test_fp32_weights_that_compute_in_bf16_have_a_copy():
    assert of(precision="bf16")["rollout"] - of()["rollout"] == pytest.approx(
        2 * 10**9 - 2 * 528 * 64 * KEPT["FluxTransformer2DModel"]
    )


def test_guidance_by_a_second_forward_doubles_rows():
    guided = replace(SHARED, guidance=4.5)
    family = FAMILIES["StableDiffusion3Pipeline"]
    one = estimate(SIZES, family, replace(SHARED, guidance=1.0)).phases
    two = estimate(SIZES, family, guided).phases
    unit = 2 * 528 * 64 * 4
    assert two["update"] - one["update"] == unit * 5 * KEPT["FluxTransformer2DModel"]


def test_fsdp2_divides_the_state_and_ddp_does_not():
    alone, parts, whole = of(), of(processes=8, parallel="fsdp2"), of(processes=8)
    saved = 10**9 * 16 * 7 / 8 - 2 * 4 * 10**9 / 5 + LATENTS * 7 / 8
    assert alone["update"] - parts["update"] == pytest.approx(saved)
    assert whole["update"] - alone["update"] == pytest.approx(4 * 10**9 - LATENTS * 7 / 8)
    assert alone["encode"] == parts["encode"]
    assert alone["evaluate"] == parts["evaluate"]


def test_a_12_b_model_with_adapters_fits_80_gb_and_in_full_does_not():
    from bench.models.catalog import MODELS
    from bench.presets import PRESETS

    sizes = sizes_of(CONFIGURATIONS / "flux-dev")
    assert sizes is not None
    shared = replace(Shared(), **PRESETS["lora"].shared, **MODELS["flux-dev"].means, resolution=720)
    assert 24e9 < estimate(sizes, FLUX, shared).peak < 80e9
    assert estimate(sizes, FLUX, replace(shared, lora_rank=0, lora_alpha=None)).peak > 190e9


def test_sizes_are_read_off_files_where_there_is_no_table(tmp_path):
    folder = write_skeleton(tmp_path / "model")
    sizes = sizes_of(folder)
    assert sizes is not None
    assert (sizes.model, sizes.vae, sizes.encoders, sizes.projections) == (2000, 100, 100, 0)
    for file in (folder / "transformer").glob("*.safetensors*"):
        file.unlink()
    assert sizes_of(folder) is None


def test_what_is_left_to_make_a_run_smaller_is_named():
    assert "lora_rank" in remedies(SHARED, 1, "ddp")
    assert "gradient_checkpointing" in remedies(SHARED, 1, "ddp")
    small = replace(SHARED, lora_rank=8, frozen="bf16", gradient_checkpointing=True, micro_batch=1)
    assert remedies(small, 1, "ddp") == "torchrun with --parallel fsdp2"


def test_bytes_are_told_in_gigabytes():
    assert gigabytes(23.8e9) == "23.8"


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool that tells of two GPUs."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 81559\necho 24564\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    return tool


def test_the_smallest_gpu_counts(card, monkeypatch):
    assert gpu_bytes() == 24564 * 2**20
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_bytes() is None
    assert shutil.which("nvidia-smi") is None


def test_a_dry_run_tells_of_memory_and_one_of_the_embedded_model_does_not(tmp_path, capsys, monkeypatch):
    from bench.run import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(f"{n} cats" for n in range(100)))
    words = ["--algos", "dance", "--model", "flux-dev", "--set", "model.weights=random", "--rewards", "random"]
    words += ["--prompts", "prompts.txt", "--iterations", "2", "--dry-run"]
    assert main(words) == 0
    assert "GB a GPU, estimated (encode " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["update"] > 24e9
    assert main(["--algos", "dance", "--dry-run"]) == 0
    assert "GB a GPU" not in capsys.readouterr().out


def test_a_run_that_may_not_fit_is_warned_of(card, capsys):
    from argparse import Namespace

    from bench.memory import Memory
    from bench.run import warn_of_memory
    from bench.suite import Suite

    suite = Suite(folder=Path("x"), preset="lora", shared=SHARED, cells=())
    args = Namespace(device="auto", parallel=None)
    warn_of_memory(suite, args, Memory(phases={"update": 30e9}, trained=1))
    said = capsys.readouterr().err
    assert said.startswith("bench: the run takes about 30 GB a GPU, estimated, and this machine's smallest has 25.8;")
    assert "--set lora_rank=64" in said
    warn_of_memory(suite, args, Memory(phases={"update": 20e9}, trained=1))
    warn_of_memory(suite, Namespace(device="cpu", parallel=None), Memory(phases={"update": 30e9}, trained=1))
    warn_of_memory(suite, args, None)
    assert capsys.readouterr().err == ""
