from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.embedded import make, world
from bench.embedded.training import Training, choose_prompts, draw_pictures, rate, seeded, train


def _training(weight, steps, stop=None):
    optimiser = torch.optim.AdamW([weight], lr=0.1)

    def loss(step):
        if step == stop:
            raise KeyboardInterrupt
        _, noise = seeded(1, step)
        return (weight - torch.zeros(3).uniform_(generator=noise)).square().sum()

    module = torch.nn.ParameterList([weight])
    return Training(
        name="toy",
        steps=steps,
        parts={"weight": module},
        optimisers=[optimiser],
        loss=loss,
        after=lambda _: None,
        check=dict,
        check_every=100,
        save_every=5,
    )


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, cut, resumed = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    train(_training(whole, 20), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(_training(cut, 20, stop=13), tmp_path / "cut")
    train(_training(resumed, 20), tmp_path / "cut")
    assert not torch.equal(cut, whole)
    assert torch.equal(resumed, whole)


def test_a_finished_training_is_not_trained_again(tmp_path):
    weight, again = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    first = train(_training(weight, 10), tmp_path)
    second = train(_training(again, 10, stop=0), tmp_path)
    assert torch.equal(weight, again)
    assert first == second > 0.0


def test_the_learning_rate_warms_up_and_decays_to_three_percent():
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.03, abs=1e-4)
    assert all(before >= after for before, after in pairwise(rates[100:]))


def test_only_base_prompts_are_drawn_and_the_hard_categories_more_often():
    prompts = choose_prompts(3000, seeded(0)[0])
    assert set(prompts) <= set(world.prompts("base"))
    counts = Counter(world.parse(prompt).category for prompt in prompts)
    assert [counts[category] / 3000 for category in world.CATEGORIES] == pytest.approx(
        [1 / 9] * 3 + [2 / 9] * 3, abs=0.03
    )


def test_the_share_of_careless_pictures_is_what_was_asked_for():
    prompts = ["a red circle"] * 800
    clean, web = (draw_pictures(prompts, seeded(0)[0], web=share) for share in (0.0, 1.0))
    assert not any(len(picture.sprites) > 1 or picture.fade for picture in clean)
    assert np.mean([len(picture.sprites) > 1 for picture in web]) == pytest.approx(0.45, abs=0.06)


def test_steps_for_all_stages_at_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        make.main(["--out", "nowhere", "--steps", "3"])
    assert "--steps needs --stage" in capsys.readouterr().err


def test_the_autoencoder_and_transformer_have_the_documented_sizes():
    from bench.embedded.make_flux import new_transformer
    from bench.embedded.make_vae import new_vae

    sizes = [sum(p.numel() for p in module.parameters()) for module in (new_vae(), new_transformer())]
    assert sizes == [237_123, 867_440]


def test_packing_is_that_of_the_stock_pipeline():
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    from bench.embedded.make_flux import pack, unpack

    latent = torch.arange(2 * 8 * 8 * 8, dtype=torch.float32).reshape(2, 8, 8, 8)
    assert torch.equal(pack(latent), FluxPipeline._pack_latents(latent, 2, 8, 8, 8))
    assert torch.equal(unpack(pack(latent)), latent)


def test_a_hard_negative_differs_in_meaning_and_is_of_the_world():
    from bench.embedded.make_scorer import edits

    for scene in list(world.scenes())[::23]:
        changed = list(edits(scene))
        assert scene not in [other for _, other in changed]
        assert all(world.parse(world.caption(other)) == other for _, other in changed)
        assert all(other.category == scene.category for _, other in changed)
        assert {"colour", "shape"} <= {kind for kind, _ in changed}


def test_the_zero_step_transformer_predicts_zero_velocity():
    from bench.embedded.make_flux import new_transformer, velocity

    text = {"encoder_hidden_states": torch.ones(2, 12, 64), "pooled_projections": torch.ones(2, 64)}
    assert torch.equal(
        velocity(new_transformer(), torch.ones(2, 16, 32), torch.full((2,), 0.5), text), torch.zeros(2, 16, 32)
    )


def test_a_folder_begun_with_one_seed_is_not_continued_with_another(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "seed").write_text("0")
    with pytest.raises(SystemExit, match="begun with seed 0"):
        make.main(["--out", str(tmp_path), "--stage", "tokenizers", "--seed", "1"])
    assert not (tmp_path / "made.json").exists()


def test_muon_of_kernels_moves_the_kernel_itself_and_resumes():
    from bench.embedded.training import muon_of_kernels

    def trained(steps, state=None):
        module = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3), torch.nn.Conv3d(4, 1, 1))
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, generator=seeded(parameter.numel())[1])
        optimisers = muon_of_kernels(module)
        if state:
            module.load_state_dict(state[0])
            for optimiser, saved in zip(optimisers, state[1], strict=True):
                optimiser.load_state_dict(saved)
        for _ in range(steps):
            for optimiser in optimisers:
                optimiser.zero_grad()
            module(torch.ones(1, 2, 3, 3, 3)).square().sum().backward()
            for optimiser in optimisers:
                optimiser.step()
        return module.state_dict(), [optimiser.state_dict() for optimiser in optimisers]

    before, whole, half = (trained(steps) for steps in (0, 4, 2))
    resumed, _ = trained(2, half)
    for kernel in ("0.weight", "1.weight"):
        assert not torch.equal(before[0][kernel], whole[0][kernel])
        assert torch.equal(resumed[kernel], whole[0][kernel])


def test_a_stage_of_another_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        make.main(["--out", "nowhere", "--model", "flux", "--stage", "wan"])
    assert "--stage wan is not of flux, which has tokenizers" in capsys.readouterr().err


def test_the_video_model_has_the_documented_sizes():
    from bench.embedded.make_wan import new_transformer
    from bench.embedded.make_wan_vae import new_vae

    sizes = [sum(p.numel() for p in module.parameters()) for module in (new_vae(), new_transformer())]
    assert sizes == [713_644, 600192]


def test_the_zero_step_video_transformer_predicts_zero_velocity():
    from bench.embedded.make_wan import LATENT, new_transformer, velocity

    x = torch.ones(2, *LATENT)
    assert torch.equal(
        velocity(new_transformer(), x, torch.full((2,), 0.5), torch.ones(2, 12, 64)), torch.zeros_like(x)
    )
