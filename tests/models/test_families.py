"""What is true of every family's adapter, against diffusers' own pipelines on tiny checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import CASES, GUIDED, HEIGHT, PROMPTS, WIDTH, Case, ode, point, sampled_by
from torch import Tensor

from bench import record, run
from bench import suite as suites
from bench.lora import add_lora
from bench.models.source import check_size, resolve_model
from bench.noise import Noise
from bench.policy import Condition, encoded
from bench.registry import InputError
from bench.rollout import rollout
from bench.suite import Suite
from bench.worker import Worker, work

HARD = {
    "nothing": "",
    "endless": "a red circle and " * 600,
    "letters without an end": "x" * 10_000,
    "not English": "Ein großer Kreis, 三つの青い四角, красный круг",
    "emoji": "🎉👩‍👩‍👧‍👦 🔴",
    "quoted": "a sign that says \"don't\" and 'do' <|endoftext|> </s>\n\t\\",
}
Family = tuple[Case, Path]


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest) -> Family:
    case = CASES[request.param]
    return case, request.getfixturevalue(case.fixture)


@pytest.fixture(scope="module")
def policy(family: Family) -> Any:
    case, folder = family
    return case.policy(folder)


@pytest.fixture(scope="module")
def pipe(family: Family) -> Any:
    case, folder = family
    return case.load(folder)


@pytest.mark.parametrize("prompt", HARD.values(), ids=HARD)
def test_any_prompt_is_encoded_as_the_pipeline_encodes_it(family: Family, policy, pipe, prompt: str):
    with torch.no_grad():
        wanted = family[0].told(pipe, prompt)
    for ours, theirs in zip(encoded(policy, [prompt]).tensors, wanted, strict=True):
        torch.testing.assert_close(ours[0], theirs, atol=1e-6, rtol=1e-6)


def test_different_prompts_are_told_differently(policy):
    rows = encoded(policy, ["a red circle", "a green circle", "un cercle", "圆圈 圆", ""]).tensors
    for at in range(5):
        for other in range(at):
            assert any(not torch.equal(row[at], row[other]) for row in rows)


@torch.no_grad()
def test_the_velocity_is_what_the_pipeline_steps_with(family: Family, policy, pipe):
    plan = ode(next(iter(family[0].grids)))
    stock, condition = sampled_by(pipe, family[0], plan, policy.latent_shape), encoded(policy, PROMPTS)
    # The pipeline encodes a batch, we encode one by one: guidance multiplies what rounding that leaves.
    close = 1e-6 * (2 * family[0].guidance - 1 if policy.calls_per_velocity == 2 else 1)

    assert len(stock.steps) == plan.steps
    for step in stock.steps:
        velocity = policy.velocity(step.latent, step.sigma.expand(len(PROMPTS)), condition)
        torch.testing.assert_close(velocity, step.velocity, atol=close, rtol=close)


def test_an_ode_plan_samples_the_pipelines_images_on_every_grid_it_takes(family: Family, policy, pipe):
    case, noise, condition = family[0], Noise(seed=0, iteration=0), encoded(policy, PROMPTS)
    for grid, call in case.grids.items():
        plan = ode(grid)
        stock = sampled_by(pipe, case, plan, policy.latent_shape, **call)
        sampled = rollout(policy, plan, condition, noise, chunk=2)

        assert [float(step.sigma) for step in stock.steps] == pytest.approx(plan.sigmas[:-1].tolist(), abs=1e-6)
        torch.testing.assert_close(policy.decode(sampled.x0), stock.images, atol=1e-5, rtol=1e-5)
        assert stock.images.shape[-2:] == (HEIGHT, WIDTH)
        assert stock.images.std() > 0.01


@torch.no_grad()
def test_a_row_is_computed_alike_in_any_company(policy):
    x, sigma, condition = point(policy)
    together = policy.velocity(x, sigma, condition)
    for row in range(len(x)):
        alone = policy.velocity(x[[row]], sigma[[row]], condition.rows(torch.tensor([row])))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_weighs_the_gradients_of_both_halves(name: str, request: pytest.FixtureRequest):
    case = CASES[name]
    folder, weight = request.getfixturevalue(case.fixture), case.guidance
    guided, plain = case.policy(folder), case.policy(folder, guidance=1.0)
    assert (guided.calls_per_velocity, plain.calls_per_velocity) == (2, 1)
    x, sigma, condition = point(guided)
    assert condition.negative is not None
    away = tuple(n.expand_as(t) for n, t in zip(condition.negative, condition.tensors, strict=True))

    def gradient(of: Any, told: Condition) -> tuple[Tensor, Tensor]:
        of.model.zero_grad()
        velocity = of.velocity(x, sigma, told)
        velocity.square().sum().backward() if of is guided else (velocity * pull).sum().backward()
        return velocity.detach(), torch.cat([p.grad.flatten() for p in of.model.parameters() if p.grad is not None])

    velocity, whole = gradient(guided, condition)
    pull = 2 * velocity
    positive, toward = gradient(plain, condition)
    negative, back = gradient(plain, Condition(tensors=away))

    torch.testing.assert_close(velocity, (1 - weight) * negative + weight * positive, atol=1e-5, rtol=1e-5)
    scale = float(whole.abs().max())
    torch.testing.assert_close(whole, (1 - weight) * back + weight * toward, atol=1e-5 * scale, rtol=1e-4)
    assert (whole - weight * toward).abs().max() > 1e-2 * scale


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def step(policy: Any) -> None:
    """Train a little."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    policy.velocity(*point(policy)).square().mean().backward()
    optimizer.step()


def test_an_update_changes_the_transformer_and_nothing_else(family: Family):
    case, folder = family
    policy = case.policy(folder)
    before, frozen, told = state(policy.model), state(policy.vae), encoded(policy, PROMPTS)
    step(policy)

    still = [name for name, value in policy.model.named_parameters() if torch.equal(value, before[name])]
    assert len(still) < 0.1 * len(before), still
    assert all(torch.equal(value, frozen[name]) for name, value in policy.vae.state_dict().items())
    assert all(map(torch.equal, encoded(policy, PROMPTS).tensors, told.tensors))
    assert not any(parameter.requires_grad for parameter in policy.vae.parameters())


def test_lora_trains_the_adapters_of_attention_and_nothing_else(family: Family):
    case, folder = family
    policy = case.policy(folder)
    add_lora(policy, rank=2, alpha=4.0, seed=0)
    before = state(policy.model)
    step(policy)

    moved = {name for name, value in policy.model.state_dict().items() if not torch.equal(value, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    layers = {name.split(".lora_")[0] for name in adapters}
    assert layers == {name for name, _ in policy.model.named_modules() if re.search(case.lora, f".{name}")}
    assert moved <= adapters
    assert len({name.split(".lora_")[0] for name in moved}) > 0.9 * len(layers)  # SD3's last text query has no effect


@torch.no_grad()
def test_what_is_saved_is_loaded_by_diffusers_and_computes_the_same(family: Family, tmp_path: Path):
    case, folder = family
    policy = case.policy(folder)
    for parameter in policy.model.parameters():
        parameter.mul_(1.1)
    policy.save(tmp_path / "saved")
    again = case.policy(folder)
    assert not torch.allclose(again.velocity(*point(again)), policy.velocity(*point(policy)), atol=1e-4)
    again.model = case.load(tmp_path / "saved").transformer

    torch.testing.assert_close(again.velocity(*point(again)), policy.velocity(*point(policy)))
    assert policy.vae.state_dict().keys() == case.load(tmp_path / "saved").vae.state_dict().keys()


def test_adapters_that_are_saved_are_loaded_by_diffusers_and_compute_the_same(family: Family, tmp_path: Path):
    case, folder = family
    policy, base = case.policy(folder), case.policy(folder)
    add_lora(policy, rank=2, alpha=6.0, seed=0)
    step(policy)
    policy.save(tmp_path / "lora")
    pipe = case.load(folder)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    with torch.no_grad():
        trained, untrained = policy.velocity(*point(policy)), base.velocity(*point(base))
        base.model = pipe.transformer

        assert not torch.allclose(trained, untrained, atol=1e-4)
        torch.testing.assert_close(base.velocity(*point(base)), trained)


@torch.no_grad()
def test_random_weights_need_configurations_alone(family: Family, tmp_path: Path):
    case, folder = family
    for file in folder.rglob("*.json"):
        if "tokenizer" not in file.parent.name:
            (tmp_path / file.parent.name).mkdir(exist_ok=True)
            (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())
    policies = [case.policy(tmp_path, weights="random") for _ in range(2)]
    velocity, again = (policy.velocity(*point(policy)) for policy in policies)

    assert velocity.isfinite().all()
    assert torch.equal(velocity, again)
    rows = encoded(policies[0], PROMPTS).tensors
    assert [row.shape[-1] for row in rows] == [row.shape[-1] for row in encoded(case.policy(folder), PROMPTS).tensors]


def test_bf16_computes_nearly_the_same_and_keeps_adapters_in_fp32(family: Family):
    case, folder = family
    # Unguided: guidance multiplies rounding.
    half = case.policy(folder, guidance=1.0, dtype=torch.bfloat16, frozen=torch.bfloat16)
    exact = case.policy(folder, guidance=1.0)
    add_lora(half, rank=2, alpha=4.0, seed=0)
    x, sigma, condition = point(exact)
    with torch.no_grad():
        velocity, wanted = half.velocity(x, sigma, condition), exact.velocity(x, sigma, condition)

    assert velocity.dtype == torch.float32
    assert 0 < (velocity - wanted).norm() / wanted.norm() < 2e-2
    model: Any = half.model
    kept = model._keep_in_fp32_modules or ()  # the class's own word on what bf16 would spoil
    for name, parameter in model.named_parameters():
        whole = parameter.requires_grad or any(part in name for part in kept)
        assert parameter.dtype == (torch.float32 if whole else torch.bfloat16), name
    images = half.decode(x), exact.decode(x)
    assert images[0].dtype == torch.float32
    torch.testing.assert_close(*images, atol=5e-2, rtol=0.0)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 36), (4, 32)])
def test_a_size_that_cuts_a_token_is_refused(family: Family, height: int, width: int):
    case, folder = family
    with pytest.raises(InputError, match=rf"^resolution=\[{height}, {width}\]: .*multiples of 8$") as refused:
        check_size(resolve_model(str(folder)), height, width, case.frames)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=f"{height} x {width} pixels: sides are multiples of 8"):
        case.policy(folder, height=height, width=width)


ARMS = ("dance", "mix", "branch")
REDNESS = """
from bench.contract import RewardInfo


class Redness:
    info = RewardInfo(
        unit="none", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="a test", media="video"
    )

    def __call__(self, images, prompts, group):
        return images[:, :, 0].mean((1, 2, 3)).double().cpu().numpy()


REWARDS = {"redness": Redness}
"""
"""A scorer of videos."""
SETTINGS = {
    "resolution": f"[{HEIGHT},{WIDTH}]",
    "steps": 4,
    "group_size": 4,
    "prompts_per_iteration": 2,
    "iterations": 2,
    "train_steps": "[0,1]",
    "lr": "1e-3",
    "eval_prompts": 2,
    "eval_samples": 1,
    "eval_steps": 2,
    "branch.splits": "[0,1]",
    "mix.window": 2,
}


@pytest.fixture
def bench(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    """`bench("dance", lora_rank=2)` is `bench run` on the family's checkpoint, its worker in this process."""
    case, folder = family
    monkeypatch.chdir(tmp_path)
    prompts = [*HARD.values(), *(f"{at} red circles" for at in range(60))]
    Path("prompts.txt").write_text("\n".join(prompt.replace("\n", " ") for prompt in prompts), encoding="utf-8")
    Path("redness.py").write_text(REDNESS)
    made = []

    def started(suite: Suite, *_: Any) -> list[Any]:
        made.append(suite)
        work(Worker(suite=suite.folder, device=torch.device("cpu")), [cell.folder for cell in suite.cells])
        return []

    monkeypatch.setattr(suites, "start", started)

    def called(algos: str, **changes: Any) -> Suite:
        keys = SETTINGS | {"guidance": case.guidance, "frames": case.frames} | changes
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
        given = ["--model", str(folder), "--prompts", "prompts.txt", "--suite", "tiny", "--preset", "smoke"]
        rewards = ["--rewards", "random"] if case.frames == 1 else ["--rewards", "redness", "--plugin", "redness.py"]
        assert run.main(["--algos", algos, *given, *rewards, *sets]) == 0
        return made[-1]

    return called


def test_every_arm_trains_the_transformer_alone_and_what_it_leaves_is_loaded_by_diffusers(family: Family, bench):
    case, folder = family
    suite = bench(",".join(ARMS))

    assert [cell.arm for cell in suite.cells] == list(ARMS)
    for cell in suite.cells:
        found = record.read_cell(suite.folder / cell.folder)
        assert found.result is not None
        for row in found.rows:
            assert row["calls"]["rollout"] == row["nfe"]["rollout"]["calls"] * row["samples"]
        for file in (path for path in folder.rglob("*") if path.is_file()):
            saved = found.folder / "pipeline" / file.relative_to(folder)
            assert saved.read_bytes() == file.read_bytes() or file.parent.name == "transformer", file
        before, after = case.load(folder).transformer, case.load(found.folder / "pipeline").transformer
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_cell_of_adapters_leaves_what_diffusers_loads(family: Family, bench):
    case, folder = family
    suite = bench("dance", lora_rank=2, frozen="bf16")

    pipe = case.load(folder)
    pipe.load_lora_weights(str(suite.folder / suite.cells[0].folder / "lora"))
    adapters = {name: value for name, value in pipe.transformer.named_parameters() if ".lora_B" in name}
    assert sum(bool(value.any()) for value in adapters.values()) > 0.9 * len(adapters) > 0
