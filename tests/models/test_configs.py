"""The configurations that come with the program build the published architectures, on a device that holds nothing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from bench.arguments import make_suite, run_parser
from bench.memory import KEPT
from bench.models.catalog import FAMILIES, MODELS
from bench.models.layout import checked_index, has_weights, parts
from bench.models.sizes import TABLE, summed
from bench.models.source import CONFIGURATIONS, check_size, described, part_config, vae_factors

NAMES = [name for name, entry in MODELS.items() if entry.size]
PUBLISHED = {
    ("flux-dev", "transformer"): 11_901_408_320,
    ("flux-dev", "text_encoder"): 123_060_480,
    ("flux-dev", "text_encoder_2"): 4_762_310_656,
    ("flux-dev", "vae"): 83_819_683,
    ("flux-schnell", "transformer"): 11_891_178_560,
    ("sd3.5-medium", "transformer"): 2_243_171_520,
    ("sd3.5-medium", "text_encoder_2"): 694_659_840,
    ("sd3.5-medium", "text_encoder_3"): 4_762_310_656,
    ("wan2.1-t2v-1.3b", "transformer"): 1_418_996_800,
    ("wan2.1-t2v-1.3b", "text_encoder"): 5_680_910_336,
    ("wan2.1-t2v-1.3b", "vae"): 126_892_531,
    ("wan2.1-i2v-14b", "transformer"): 16_394_878_784,
    ("wan2.1-i2v-14b", "image_encoder"): 632_076_800,
}
META = torch.device("meta")


def index_of(name: str) -> dict[str, Any]:
    return checked_index(name, CONFIGURATIONS / name)


def built(name: str, part: str, **changes: Any) -> Any:
    """Return a part of a model, without memory."""
    library, kind = index_of(name)[part]
    config = part_config(CONFIGURATIONS / name, part) | changes
    with META:
        if library == "diffusers":
            return getattr(diffusers, kind).from_config(config)
        of_kind = getattr(transformers, kind)
        return of_kind._from_config(of_kind.config_class.from_dict(config))


@pytest.mark.parametrize("name", NAMES)
def test_every_part_has_the_parameters_of_the_table(name):
    table = json.loads((CONFIGURATIONS / name / TABLE).read_text())
    weighed = [part for part, kind in parts(index_of(name)).items() if has_weights(kind)]
    assert sorted(table) == sorted(weighed)
    for part in weighed:
        found = summed({key: list(value.shape) for key, value in built(name, part).named_parameters()})
        assert table[part]["parameters"] == found["parameters"] == PUBLISHED.get((name, part), found["parameters"])
        assert table[part].get("projections", found["projections"]) == found["projections"]


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_family_is_that_of_the_configurations(name):
    assert index_of(name)["_class_name"] == MODELS[name].family
    assert MODELS[name].family in FAMILIES
    assert (CONFIGURATIONS / name / "scheduler" / "scheduler_config.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_size_in_bytes_is_about_that_of_the_parameters(name):
    table = json.loads((CONFIGURATIONS / name / TABLE).read_text())
    count = sum(part["parameters"] for part in table.values())
    assert 2 * count < MODELS[name].size < 4.1 * count


@pytest.mark.parametrize(
    ("name", "latent", "tokens"), [("flux-dev", (16, 90, 90), 2025), ("sd3.5-medium", (16, 64, 64), 1024)]
)
def test_a_vae_decodes_latents_of_the_registered_size(name, latent, tokens):
    entry, vae = MODELS[name], built(name, "vae")
    source = described(name)
    side = entry.resolution if isinstance(entry.resolution, int) else entry.resolution[0]
    check_size(source, side, side, 1)
    with META, torch.no_grad():
        assert vae.decode(torch.zeros(1, *latent)).sample.shape == (1, 3, side, side)
    space, _ = vae_factors(vae.config)
    assert (side // (space * source.family.patch)) ** 2 == tokens


def test_a_token_of_flux_is_four_latents():
    transformer = part_config(CONFIGURATIONS / "flux-dev", "transformer")
    assert transformer["in_channels"] == 4 * part_config(CONFIGURATIONS / "flux-dev", "vae")["latent_channels"] == 64


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b"])
def test_a_video_of_33_frames_is_9_latents_long(name):
    vae = built(name, "vae")
    check_size(described(name), 480, 832, 33)
    with META, torch.no_grad():
        assert vae.decode(torch.zeros(1, 16, 9, 60, 104)).sample.shape == (1, 3, 33, 480, 832)
    assert vae_factors(vae.config) == (8, 4)


def test_the_shift_of_flux_at_720_pixels_is_its_pipelines(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"{n} cats" for n in range(100)))
    words = ["--algos", "dance", "--model", "flux-dev", "--set", "model.weights=random", "--rewards", "random"]
    suite = make_suite(run_parser().parse_args([*words, "--prompts", str(prompts), "--set", "shift=dynamic"]))
    assert suite.shared.shift == pytest.approx(2.2245, abs=1e-3)


@cache
def kept(name: str, key: str, few: int) -> float:
    """Return how many numbers a token and channel one more block keeps for its backward pass."""
    return (saved(name, key, few + 1) - saved(name, key, few)) / 2


def saved(name: str, key: str, count: int) -> float:
    """Return the bytes that a forward keeps, a token and channel; parameters and scores are left out."""
    changes = {"num_layers": 1, key: count} if name == "flux-dev" else {"num_layers": count}
    model, b = built(name, "transformer", **changes).to(torch.bfloat16), torch.bfloat16
    own, kept_bytes = {p.untyped_storage()._cdata for p in model.parameters()}, {}
    words, length = inputs(name, b)
    width = model.config.num_attention_heads * model.config.attention_head_dim

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        scores = tensor.dim() >= 3 and (
            tensor.shape[-1] == tensor.shape[-2] or (tensor.shape[-1] == 512 and tensor.shape[-2] == length)
        )
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not scores:
            kept_bytes[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no other storage takes its place
        return tensor

    with META, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**words, return_dict=False)
    return sum(size for size, _ in kept_bytes.values()) / (length * width)


def inputs(name: str, b: torch.dtype) -> tuple[dict[str, torch.Tensor], int]:
    """Return what the model is called with at its registered size, and the length of its sequence."""
    with META:
        text = {"encoder_hidden_states": torch.zeros(1, 512, 4096, dtype=b), "timestep": torch.zeros(1, dtype=b)}
        if name == "flux-dev":
            ids = {"txt_ids": torch.zeros(512, 3), "img_ids": torch.zeros(2025, 3), "guidance": torch.zeros(1, dtype=b)}
            image = {"hidden_states": torch.zeros(1, 2025, 64, dtype=b)}
            return text | ids | image | {"pooled_projections": torch.zeros(1, 768, dtype=b)}, 2025 + 512
        if name == "sd3.5-medium":
            image = {"hidden_states": torch.zeros(1, 16, 64, 64, dtype=b)}
            text["encoder_hidden_states"] = torch.zeros(1, 333, 4096, dtype=b)
            return text | image | {"pooled_projections": torch.zeros(1, 2048, dtype=b)}, 1024 + 333
        return text | {"hidden_states": torch.zeros(1, 16, 9, 60, 104, dtype=b)}, 9 * 30 * 52


def test_what_a_block_keeps_is_what_the_estimate_takes_it_to():
    double, single = kept("flux-dev", "num_layers", 1), kept("flux-dev", "num_single_layers", 1)
    assert (19 * double + 38 * single) / 57 == pytest.approx(KEPT["FluxTransformer2DModel"], rel=0.1)
    dual, plain = kept("sd3.5-medium", "num_layers", 2), kept("sd3.5-medium", "num_layers", 15)
    assert (13 * dual + 11 * plain) / 24 == pytest.approx(KEPT["SD3Transformer2DModel"], rel=0.1)
    assert kept("wan2.1-t2v-1.3b", "num_layers", 1) == pytest.approx(KEPT["WanTransformer3DModel"], rel=0.1)


def test_the_configurations_are_part_of_the_package():
    assert Path(CONFIGURATIONS).parent.name == "models"
    assert sorted(path.name for path in CONFIGURATIONS.iterdir()) == sorted(NAMES)
