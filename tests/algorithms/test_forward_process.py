"""DiffusionNFT, V-GRPO and AWM: their losses equal the papers' formulas, written out for one image at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import PROMPTS, ToyPolicy, context, iteration_of, normal

from algorithms.awm import TINY, Awm
from algorithms.nft import Nft
from algorithms.vgrpo import VGrpo
from bench.contract import Algorithm, Batch, Outcome
from bench.policy import encoded
from bench.update import build_batch

CTX = context(steps=8, slots=2, group_size=3, iteration=4)


def batch_of(algorithm: Algorithm) -> Batch:
    policy = ToyPolicy()
    it = iteration_of(policy, algorithm, CTX, encoded(policy, PROMPTS[:2]))
    return build_batch(it, np.arange(len(it.selection.read)), it.rollout.log_prob, 1.0)


def velocities(batch: Batch) -> dict[str, torch.Tensor]:
    """Return made-up velocities of all policies, near to what the batch wants."""
    assert batch.eps is not None
    true = batch.eps - batch.target
    return {name: true + 0.3 * normal(*true.shape, key=k) for k, name in enumerate(("live", "old", "reference", "ema"))}


def mean(x: torch.Tensor) -> float:
    return float(x.double().mean())


def test_a_query_is_the_image_noised_by_its_noise():
    batch = batch_of(Nft())
    assert batch.eps is not None
    t = batch.sigma.view(-1, 1, 1)
    torch.testing.assert_close(batch.x, (1 - t) * batch.target + t * batch.eps)


def test_nfts_loss_is_the_two_sided_regression():
    nft = Nft(beta=0.5, adv_max=2.0, kl=0.3)
    batch = batch_of(nft)
    v, expected = velocities(batch), 0.0
    for i in range(len(batch.x)):
        t, x, image = float(batch.sigma[i]), batch.x[i], batch.target[i]
        live, old = v["live"][i], v["old"][i]
        r = min(max(float(batch.advantage[i]) / 4 + 0.5, 0.0), 1.0)
        off = {
            "good": x - t * (0.5 * live + 0.5 * old) - image,
            "bad": x - t * (1.5 * old - 0.5 * live) - image,
        }
        good, bad = (mean(o**2) / max(mean(o.abs()), 1e-5) for o in off.values())
        loss = 2.0 / 0.5 * (r * good + (1 - r) * bad) + 0.3 * mean((live - v["reference"][i]) ** 2)
        expected += float(batch.weight[i]) * loss
    assert float(nft.loss(batch, v)) == pytest.approx(expected, rel=1e-5)


def test_nft_takes_all_times_of_the_grid_but_one_for_each_image_and_noise_of_their_own():
    it = iteration_of(policy := ToyPolicy(), Nft(), CTX, encoded(policy, PROMPTS[:2]))
    s = it.selection
    missing = set()
    for leaf in it.plan.tree.leaves():
        times = s.sigma[s.read == leaf].tolist()
        assert len(set(times)) == len(times) == 7
        (left_out,) = set(CTX.sigmas[:-1].tolist()) - set(times)
        missing.add(left_out)
    assert len(missing) > 1
    keys = list(zip(it.plan.tree.slot[s.read].tolist(), s.draw.tolist(), strict=True))
    assert len(set(keys)) == len(keys)
    assert it.plan.policy == "old"


@pytest.mark.parametrize(
    ("schedule", "steps", "decay"),
    [
        ("ramp", 1, 0.001),
        ("ramp", 100, 0.1),
        ("ramp", 900, 0.5),
        ("late", 75, 0.0),
        ("late", 95, 0.15),
        ("late", 999, 0.999),
    ],
)
def test_nfts_old_policy_keeps_what_the_code_keeps_after_so_many_steps(schedule, steps, decay):
    for updates in (1, steps):
        ctx = replace(CTX, iteration=steps // updates - 1, updates=updates)
        assert Nft(schedule=schedule).decay(ctx) == {"old": pytest.approx(decay)}


def test_awms_average_keeps_a_thousandth_more_with_every_step_up_to_three_tenths():
    kept = [Awm().decay(replace(CTX, iteration=i))["ema"] for i in (0, 9, 299, 999)]
    assert kept == pytest.approx([0.001, 0.01, 0.3, 0.3])
    assert Awm().decay(replace(CTX, iteration=4, updates=4)) == {"ema": pytest.approx(0.02)}


@pytest.mark.parametrize("algorithm", [Nft(), Awm()], ids=["nft", "awm"])
def test_credit_is_by_the_prompts_mean_and_the_std_of_all(algorithm):
    ctx = context(steps=4, slots=2, group_size=3)
    plan, reward = algorithm.plan(ctx), np.array([1.0, 2, 3, 10, 20, 60])
    leaf = plan.tree.leaves()
    found = algorithm.credit(plan, Outcome(log_prob=np.zeros(len(plan.tree)), reward=reward, leaf=leaf), ctx)[leaf]
    expected = (reward - np.repeat([2.0, 30.0], 3)) / (reward.std() + 1e-4)
    np.testing.assert_allclose(found, expected / (1 if isinstance(algorithm, Nft) else 5))


def gradient_of(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, at)[0]


def test_the_normalisers_of_nft_and_vgrpo_are_constants_to_the_gradient():
    for algorithm in (Nft(kl=0.0, adv_max=2.0), VGrpo(draws=1, kl=0.0, clip=1.0)):
        batch = batch_of(algorithm)
        v = velocities(batch)
        live = v["live"].clone().requires_grad_()
        found = gradient_of(algorithm.loss(batch, v | {"live": live}), live)
        t = batch.sigma.view(-1, 1, 1)
        a, w = (x.view(-1, 1, 1) for x in (batch.advantage, batch.weight))

        def pull(velocity: torch.Tensor, batch: Batch = batch, t: torch.Tensor = t) -> torch.Tensor:
            """Return d(mean square / constant) / d(clean prediction), times d(clean prediction) / d(velocity)."""
            off = batch.x - t * velocity - batch.target
            scale = off.abs().mean((1, 2), keepdim=True)
            return -t * 2 * off / off[0].numel() / scale

        if isinstance(algorithm, Nft):
            r = (a / 4 + 0.5).clamp(0, 1)
            mirrored = 2 * v["old"] - v["live"]
            expected = 2.0 * w * (r * pull(v["live"]) - (1 - r) * pull(mirrored))
        else:
            off = {name: batch.x - t * v[name] - batch.target for name in ("live", "old")}
            l_ = {name: o.square().mean((1, 2)) / o.abs().mean((1, 2)) for name, o in off.items()}
            ratio = (l_["old"] - l_["live"]).exp().view(-1, 1, 1)
            inside = ((ratio > 0) & (ratio < 2)) | (a < 0)
            expected = torch.where(inside, w * a * ratio * pull(v["live"]), 0.0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_vgrpos_loss_is_the_clipped_surrogate_of_an_images_mean_denoising_loss():
    vgrpo = VGrpo(draws=3, clip=0.01, kl=0.2)
    batch = batch_of(vgrpo)
    v, expected = velocities(batch), 0.0

    def denoising(policy: str, i: int) -> float:
        off = batch.x[i] - float(batch.sigma[i]) * v[policy][i] - batch.target[i]
        return mean(off**2) / mean(off.abs())

    for image in range(6):
        draws = range(3 * image, 3 * image + 3)
        gained = np.mean([denoising("old", i) - denoising("live", i) for i in draws])
        ratio, a = float(np.exp(gained)), float(batch.advantage[3 * image])
        surrogate = max(-a * ratio, -a * min(max(ratio, 0.99), 1.01))
        for i in draws:
            apart = float(batch.sigma[i]) * (v["live"][i] - v["old"][i])
            expected += float(batch.weight[i]) * (surrogate + 0.2 * mean(apart**2))
    assert float(vgrpo.loss(batch, v)) == pytest.approx(expected, rel=1e-5)


def test_vgrpo_gives_a_group_the_same_times_and_noise_one_of_each_stratum():
    vgrpo = VGrpo()
    it = iteration_of(policy := ToyPolicy(), vgrpo, CTX, encoded(policy, PROMPTS[:2]))
    s = it.selection
    assert s.draw.tolist() == [0, 1, 2, 3] * 6
    assert s.unit.tolist() == [i for i in range(6) for _ in range(4)]
    times = [CTX.sigmas.tolist().index(x) for x in s.sigma]
    assert times == times[:4] * 6
    assert [t // 2 for t in times[:4]] == [0, 1, 2, 3]  # eight steps in four strata
    later = vgrpo.select(it.plan, outcome(it, np.arange(6.0)), it.advantage, replace(CTX, iteration=5))
    assert later.sigma.tolist() != s.sigma.tolist()


def test_vgrpos_soft_clip_bounds_advantages_and_keeps_small_ones():
    reward = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 0, 100])
    ctx = context(steps=4, slots=1, group_size=10)
    plan = VGrpo().plan(ctx)
    leaf = plan.tree.leaves()
    credit = VGrpo(bound=0.5).credit(plan, Outcome(log_prob=np.zeros(len(plan.tree)), reward=reward, leaf=leaf), ctx)
    z = (reward - 10) / np.std(reward, ddof=1)
    np.testing.assert_allclose(credit[leaf], 0.5 * np.tanh(z / 0.5))


def outcome(it, reward: np.ndarray) -> Outcome:
    return Outcome(log_prob=it.rollout.log_prob, reward=reward, leaf=it.plan.tree.leaves())


LOG_PROBS = {
    "uniform": lambda e, t: -e,
    "t": lambda e, t: -t * e,
    "t2": lambda e, t: -(t**2) * e,
    "huber": lambda e, t: -t * ((e + TINY) ** 0.5 - 1e-5),
    "ghuber": lambda e, t: -t / 0.25 * ((e + TINY) ** 0.25 - TINY**0.25),
}


@pytest.mark.parametrize("weighting", LOG_PROBS)
def test_awms_loss_is_the_clipped_surrogate_of_the_weighted_matching_loss(weighting):
    awm = Awm(weighting=weighting, draws=3, clip=0.05, kl=0.2, kl_ema=0.7)
    batch = batch_of(awm)
    assert batch.eps is not None
    v, expected = velocities(batch), 0.0
    for i in range(len(batch.x)):
        wanted, t = batch.eps[i] - batch.target[i], float(batch.sigma[i])
        live, old = (LOG_PROBS[weighting](mean((v[name][i] - wanted) ** 2), t) for name in ("live", "old"))
        ratio, a = float(np.exp(live - old)), float(batch.advantage[i])
        loss = max(-a * ratio, -a * min(max(ratio, 0.95), 1.05))
        for name, weight in (("reference", 0.2), ("ema", 0.7)):
            loss += weight * mean((v["live"][i] - v[name][i]) ** 2)
        expected += float(batch.weight[i]) * loss
    assert float(awm.loss(batch, v)) == pytest.approx(expected, rel=1e-4)


def test_awm_takes_the_same_times_for_all_images_none_of_them_pure_noise():
    it = iteration_of(policy := ToyPolicy(), Awm(), CTX, encoded(policy, PROMPTS[:2]))
    s = it.selection
    times = [CTX.sigmas.tolist().index(x) for x in s.sigma]
    assert times == times[:6] * 6
    assert times[:6] == sorted(times[:6])
    every = {
        CTX.sigmas.tolist().index(x)
        for i in range(60)
        for x in Awm().select(it.plan, outcome(it, np.arange(6.0)), it.advantage, replace(CTX, iteration=i)).sigma
    }
    assert every == {1, 2, 3, 4, 5, 6}  # from 1 to int(.9 * 8) - 1, as the code draws them
    assert len(set(s.draw[:18].tolist())) == 18  # of one prompt, each with noise of its own


def test_awms_advantages_lie_in_one():
    ctx = context(steps=4, slots=2, group_size=30)
    awm, reward = Awm(), np.zeros(60)
    reward[0] = 100.0
    plan = awm.plan(ctx)
    leaf = plan.tree.leaves()
    credit = awm.credit(plan, Outcome(log_prob=np.zeros(len(plan.tree)), reward=reward, leaf=leaf), ctx)[leaf]
    z = (reward[:30] - reward[:30].mean()) / (reward.std() + 1e-4)
    np.testing.assert_allclose(credit[:30], np.clip(z, -5, 5) / 5)
    assert credit[0] == 1.0


def test_awm_asks_for_no_policy_whose_weight_is_zero():
    assert Awm().needs == {"old", "reference", "ema"}
    assert Awm(kl=0.0, kl_ema=0.0).needs == {"old"}
    assert Nft(kl=0.0).needs == {"old"}
