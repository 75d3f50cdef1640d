"""What a run is, decided and checked before anything is computed: shared keys, arms, seeds, cells, hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.budget import Budget
from bench.contract import HANDED_DOWN, OWNABLE, Algorithm, Context, Memory, Named
from bench.hosts import code, family, host_fields, hosts, info_record, is_of_family, restored, settings, with_hosts
from bench.parse import ArmSpec, field_types, parse_arms, replaced
from bench.plan import Plan
from bench.registry import InputError, Registry, nearest
from bench.schedule import sigma_grid

LATER = frozenset(
    {"reward_timeout", "lora_rank", "lora_alpha", "gradient_checkpointing", "ema_device"}
    | {"model_weights", "frames", "grid", "frozen"}
)
"""Shared keys that the first version had not: at its default such a key changes no hash, so that suites begun before it
was there go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the suite owns: equal for all arms, but for keys that an arm's `info.owns` declares and it sets."""

    model: str = "tiny-flux"
    """A registered name, a hub id with an optional @revision, or a folder in diffusers' layout."""
    model_digest: str = ""
    """Of its files, where they are on this machine; set by the program."""
    model_weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the architecture alone, to measure speed and memory before anything is downloaded."""
    resolution: int | tuple[int, int] = 32
    """Height and width of the images: one number for both, or two; pixels."""
    frames: int = 1
    """Of a video."""
    guidance: float = 3.5
    """What the model takes as such: FLUX an embedding, others the scale of classifier-free guidance, 1 for none."""
    prompts: str = "world"
    """`world`, the embedded model's; a text, .jsonl, .json, .csv or .parquet file; a folder with a train and a test
    file; or `hub:OWNER/NAME[@REVISION][:FILE]`, which is recorded with its commit."""
    prompts_digest: str = ""
    """Of the prompts; set by the program."""
    rewards: tuple[str, ...] = ("soft",)
    """Trained on: names, each with an optional weight, as in hpsv2.1:0.7. Weights are normalised to sum 1."""
    scorer_revisions: tuple[str, ...] = ()
    """Of all scorers of the run, as name@revision; set by the program."""
    combine: Literal["advantage", "reward"] = "advantage"
    """Several rewards: weigh their advantages, or the rewards themselves."""
    reward_timeout: float = 600.0
    """Seconds that one call of a scorer may take; then its images have failed, and are counted as such."""
    eval_rewards: tuple[str, ...] = ("soft", "graded", "strict", "tiny-clip")
    """Scored on held-out prompts before and after training."""
    features: str = "tiny-clip"
    """The scorer in whose image features drift is measured; empty for none."""
    iterations: int = 30
    """The most, under every budget."""
    budget: Budget = "iterations"
    """What is equal between arms: iterations; or model calls (a training call counts 3), seconds, or samples up to
    `budget_limit`; or the training reward (mean of five iterations) at which a cell stops."""
    budget_limit: float | None = None
    prompts_per_iteration: int = 8
    group_size: int = 16
    """Images a prompt."""
    steps: int = 10
    """Denoising steps T of a rollout."""
    shift: float = 3.0
    """Of the sigma grid; given as `dynamic`, the program computes what the model's own pipeline would."""
    grid: Literal["plain", "double-shift"] = "plain"
    """Of sigmas; `double-shift` is what diffusers' scheduler makes of a number of steps for SD3."""
    train_steps: tuple[int, ...] | None = None
    """Steps whose edges may be trained; none says all but the last."""
    kernel: Literal["dance_sde", "flow_sde", "cps"] | None = None
    """Of stochastic steps; none leaves each algorithm its own."""
    eta: float | None = None
    """Noise level of stochastic steps; none leaves each algorithm its own."""
    roots: Literal["shared", "independent"] | None = None
    """Initial noise, one a group or one an image; none leaves each algorithm its own."""
    clip: float | None = None
    """Clip range of the ratio; none leaves each algorithm its own."""
    solver: Literal["euler", "dpm2m"] = "euler"
    """Of ODE steps in a rollout."""
    adv_clip: float = 5.0
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    updates_per_iteration: int = 1
    """Optimiser steps an iteration; divides prompts_per_iteration."""
    anchor: Literal["rollout", "recompute"] = "rollout"
    """Where the ratio's denominator comes from: the rollout, or an extra, counted pass in training geometry."""
    lora_rank: int = 0
    """Of the adapters that are trained, all else frozen; 0 trains the whole model."""
    lora_alpha: float | None = None
    """Their scale times the rank; none is twice the rank."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, more time, the same numbers."""
    ema: float = 0.0
    """Decay of the weights' moving average, which is then what is evaluated and saved; 0 keeps none."""
    ema_device: Literal["model", "cpu"] = "model"
    """Where that average is kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the policy's forwards in rollout and training; latents, log-probs and trained weights are fp32."""
    frozen: Literal["fp32", "bf16"] = "fp32"
    """Of what is not trained: VAE, text encoders and, beneath adapters, the model, which then computes in it always."""
    eval_split: Literal["heldout", "tune"] = "heldout"
    """`tune` is for choosing hyper-parameters, so that held-out prompts stay held out."""
    eval_prompts: int = 120
    eval_samples: int = 2
    """Images a held-out prompt, with fixed noise each."""
    eval_steps: int = 12
    eval_solver: Literal["euler", "dpm2m"] = "euler"
    checkpoint_every: int = 10
    """Iterations."""
    micro_batch: int = 128
    """Rows of one policy call; changes memory and time alone."""

    def __post_init__(self) -> None:
        _positive(self, "iterations", "prompts_per_iteration", "group_size", "updates_per_iteration", "micro_batch")
        _positive(self, "lr", "adv_clip", "max_grad_norm", "eval_prompts", "eval_samples", "checkpoint_every", "shift")
        _positive(self, "frames", "reward_timeout")
        if min(self.height, self.width) <= 0:
            raise ValueError(f"resolution={self.resolution} must be positive")
        for name in ("lr", "weight_decay", "shift", "guidance", "clip", "eta", "reward_timeout"):
            if math.isinf(getattr(self, name) or 0.0):
                raise ValueError(f"{name}={getattr(self, name)} must be finite")
        if self.steps < 2 or self.eval_steps < 2:
            raise ValueError("steps and eval_steps are at least 2")
        if self.group_size < 2:
            raise ValueError("group_size is at least 2: an advantage compares images of one prompt")
        if self.prompts_per_iteration % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration={self.updates_per_iteration} must divide "
                f"prompts_per_iteration={self.prompts_per_iteration}"
            )
        beyond = [k for k in self.train_steps or () if not 0 <= k <= self.steps - 2]
        if beyond or self.train_steps == ():
            raise ValueError(f"train_steps={list(self.train_steps or ())}: name steps from 0 to {self.steps - 2}")
        if (self.clip is not None and self.clip <= 0) or (self.eta is not None and self.eta <= 0):
            raise ValueError("clip and eta are positive")
        if (self.budget == "iterations") != (self.budget_limit is None):
            raise ValueError(
                f"budget={self.budget} {'takes no' if self.budget == 'iterations' else 'needs a'} budget_limit"
            )
        if self.budget_limit is not None and self.budget != "target" and self.budget_limit <= 0:
            raise ValueError(f"budget_limit={self.budget_limit:g} must be positive")
        if not 0 <= self.ema < 1:
            raise ValueError("ema is a decay in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} are decays in [0, 1)")
        if self.lora_rank < 0 or (self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf):
            raise ValueError(
                f"lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha}: the rank is 0 or more, the scale positive"
            )
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError(f"lora_alpha={self.lora_alpha:g} means nothing without lora_rank")
        if self.ema_device == "cpu" and not self.ema:
            raise ValueError("ema_device=cpu means nothing without ema")
        if self.guidance < 0:
            raise ValueError(f"guidance={self.guidance:g} is not negative: 0 or 1 is none, by the model")
        if self.weight_decay < 0:
            raise ValueError(
                f"weight_decay={self.weight_decay} is not negative: decay shrinks weights, never grows them"
            )
        if self.features and self.eval_prompts * self.eval_samples < 2:
            raise ValueError(
                "drift needs two images or more: raise eval_prompts or eval_samples, or set features= empty"
            )
        if not self.rewards:
            raise ValueError("rewards: name at least one, as in --rewards soft")

    @property
    def height(self) -> int:
        """Return the images' height, pixels."""
        return self.resolution if isinstance(self.resolution, int) else self.resolution[0]

    @property
    def width(self) -> int:
        """Return the images' width, pixels."""
        return self.resolution if isinstance(self.resolution, int) else self.resolution[1]


def _positive(value: Shared, *names: str) -> None:
    for name in names:
        if getattr(value, name) <= 0:
            raise ValueError(f"{name}={getattr(value, name)} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm and one seed: everything a worker needs to know."""

    suite: str
    arm: str
    """As named on the command line."""
    algo: str
    """Its registered name."""
    seed: int
    shared: Shared
    algorithm: Algorithm
    plugins: tuple[str, ...]
    hash: str
    scorers: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    """What a scorer is called in records -> how it was written, with its address or folder, where that differs."""

    @property
    def folder(self) -> str:
        """Return the name of the cell's folder."""
        return f"{_filename(self.arm)}-s{self.seed}-{self.hash}"

    @property
    def effective(self) -> dict[str, Any]:
        """Return the shared keys as this arm runs them, by its settings and first plan; None where one means nothing.

        Raises:
            ValueError: if the algorithm has no plan for these settings.
        """
        ctx = self.context(0, (0,), {})
        return self.keys | {"updates_per_iteration": ctx.updates} | as_planned(self.algorithm.plan(ctx))

    @property
    def keys(self) -> dict[str, Any]:
        """Return the shared keys with those that this arm sets itself; None for one that has no meaning for it."""
        both = [settings(algorithm) for algorithm in (*reversed(hosts(self.algorithm)), self.algorithm)]
        own = {key: value for part in both for key, value in part.items() if key in OWNABLE}
        without = dict.fromkeys(HANDED_DOWN - own.keys())
        return plain(self.shared) | without | {key: value for key, value in own.items() if value is not None}

    def context(self, iteration: int, prompts: Sequence[int], memory: Memory) -> Context:
        """Return what the cell's algorithm may know at an iteration of these prompts, one a slot."""
        keys = self.keys
        ctx = Context(
            iteration=iteration,
            seed=self.seed,
            sigmas=sigma_grid(keys["steps"], self.shared.shift, self.shared.grid),
            slots=len(prompts),
            group_size=self.shared.group_size,
            train_steps=tuple(keys["train_steps"] or range(keys["steps"] - 1)),
            shift=self.shared.shift,
            solver=keys["solver"],
            updates=self.shared.updates_per_iteration,
            prompts=tuple(prompts),
            memory=memory,
        )
        return dataclasses.replace(ctx, updates=self.algorithm.updates(ctx))


def as_planned(plan: Plan) -> dict[str, Any]:
    """Return the shared keys that a plan decides: how paths start, in how many steps and by which solvers they go.

    Paths without noise have no transitions, and so no steps that `train_steps` could name.
    """
    ode = plan.tree.depth[(plan.noise_level == 0) & (plan.tree.depth > 0)] - 1
    known = {
        "roots": "independent" if plan.tree.offset[1] > 1 else "shared",
        "steps": plan.steps,
        "solver": ", ".join(dict.fromkeys(plan.solver[step] for step in sorted(set(ode.tolist())))),
    }
    return known if plan.stochastic_steps() else known | {"train_steps": None}


def resolve(spec: ArmSpec, shared: Shared, layers: Mapping[str, Mapping[str, Any]], algorithms: Registry) -> Algorithm:
    """Return an arm's algorithm with all its settings.

    Precedence, rising: the algorithm's defaults, the suite's shared keys, settings under the family's name, under
    the arm's name, in its brackets.

    Raises:
        InputError: for unknown names, wrong values, or a shared key that the arm may not set itself.
    """
    base: Algorithm = algorithms.get(spec.algo)
    own: dict[str, Any] = {}
    of_family = layers.get(family(base), {}) if is_of_family(base, algorithms) else {}
    for source in (of_family, layers.get(spec.algo, {}), spec.changes):
        own |= source
    below = {
        key: resolve(host_spec(spec.label, key, own.pop(key, value)), shared, layers, algorithms)
        for key, value in host_fields(base).items()
    }
    try:
        base = with_hosts(base, below)
    except ValueError as error:
        raise InputError(f"{spec.label}: {error}") from error
    shared_keys = field_types(Shared)
    for key in own:
        if key in shared_keys and key not in base.info.owns:
            hint = f"it may set {', '.join(sorted(base.info.owns)) or 'none'}"
            raise InputError(f"{spec.label}: {key!r} is shared by all arms ({hint}); use --set {key}=...")
    kept = base.info.owns & {"clip"}  # a ratio of another kind
    given = {key: getattr(shared, key) for key in HANDED_DOWN - kept if getattr(shared, key) is not None}
    has = field_types(type(base))
    if "roots" in given and "roots" not in has and not hosts(base):
        raise InputError(f"{spec.label} cannot have roots={shared.roots}: how it starts is part of the algorithm")
    for arm in (f"{spec.algo}-{key}" for key in own.keys() - has.keys()):
        if arm in algorithms.values:
            raise InputError(f"{spec.label}: {arm.removeprefix(spec.algo + '-')!r} is an arm of its own, {arm!r}")
    algorithm = replaced(base, {key: value for key, value in given.items() if key in has} | own, spec.label)
    clip = settings(algorithm).get("clip")
    if clip is not None and clip <= 0:
        raise InputError(f"{spec.label}: clip={clip} must be positive")
    return algorithm


def check_layers(layers: Mapping[str, Mapping[str, Any]], algorithms: Registry) -> None:
    """Raise InputError for settings under a name that is no algorithm's."""
    known = {*algorithms.values, *map(family, algorithms.values.values())}
    for name in layers:
        if name not in known:
            raise InputError(f"settings for {name!r}, which is no algorithm{nearest(name, sorted(known))}")


def host_spec(label: str, key: str, value: Any) -> ArmSpec:
    """Return the arm that a setting names, as in guard(host=branch(splits=sparse))."""
    if not isinstance(value, (str, Named)):
        raise InputError(f"{label}.{key}={value!r}: an arm is wanted, as in {key}=dance or {key}=branch(s=2)")
    specs = parse_arms(value if isinstance(value, str) else value.name)
    if len(specs) != 1:
        raise InputError(f"{label}.{key}={value!r}: one arm is wanted")
    return specs[0]


def plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as a dictionary that YAML and JSON write and read back unchanged."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def digest(value: Any) -> str:
    """Return a short hash of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def identity(shared: Shared) -> dict[str, Any]:
    """Return the shared keys that make two runs the same: contents, not the paths they were read from."""
    default = plain(Shared())
    keys = {key: value for key, value in plain(shared).items() if key not in LATER or value != default[key]}
    for key in ("model", "prompts"):
        keys[key] = keys[f"{key}_digest"] or keys[key]
    return keys


def check_processes(count: int, shared: Shared) -> None:
    """Raise InputError unless every process has a prompt: its images are made, and learned from, by one process."""
    if count > shared.prompts_per_iteration:
        raise InputError(
            f"torchrun started {count} processes for prompts_per_iteration={shared.prompts_per_iteration}: "
            "a process needs a prompt; start fewer, or raise it"
        )


def make_cell(
    suite: str, spec: ArmSpec, seed: int, shared: Shared, algorithm: Algorithm, plugins: Sequence[str]
) -> Cell:
    """Return a cell, with the hash of all that decides its numbers."""
    what = {"shared": identity(shared), "algo": spec.algo, "algorithm": settings(algorithm), "seed": seed}
    what["code"] = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in (*code(algorithm), *plugins)]
    return Cell(
        suite=suite,
        arm=spec.label,
        algo=spec.algo,
        seed=seed,
        shared=shared,
        algorithm=algorithm,
        plugins=tuple(plugins),
        hash=digest(what),
    )


def cell_record(cell: Cell) -> dict[str, Any]:
    """Return what config.yaml holds."""
    return {
        "version": 1,
        "suite": cell.suite,
        "arm": cell.arm,
        "algo": cell.algo,
        "seed": cell.seed,
        "hash": cell.hash,
        "shared": plain(cell.shared),
        "effective": cell.effective,
        "algorithm": settings(cell.algorithm),
        "info": info_record(cell.algorithm),
        "plugins": list(cell.plugins),
        "scorers": dict(cell.scorers),
    }


def cell_from_record(record: Mapping[str, Any], algorithms: Registry) -> Cell:
    """Return the cell of a config.yaml."""
    algorithm = restored(record["algorithm"], algorithms.get(record["algo"]), algorithms, record["arm"])
    shared = replaced(Shared(), record["shared"], "shared")
    return Cell(
        suite=record["suite"],
        arm=record["arm"],
        algo=record["algo"],
        seed=record["seed"],
        shared=shared,
        algorithm=algorithm,
        plugins=tuple(record["plugins"]),
        hash=record["hash"],
        scorers=record.get("scorers", {}),
    )


def _filename(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-._=" else "_" for c in label).strip("_")
