"""The contract between the harness and its plugins: what an algorithm, a reward and a model are.

Importing this module imports neither torch nor any model library, so that names, values and plans can be
checked, and `--dry-run` answered, in a fraction of a second.

Axes: node, edge (an edge is its child node), leaf, level, knot (step + 1), slot (position in the iteration's list
of prompts), query (a latent at a sigma where the policy is evaluated in training), item (what weighs on a query).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from bench.plan import Plan
from bench.select import Selection

if TYPE_CHECKING:
    from torch import Tensor

    from bench.batch import Batch
else:
    Tensor = Batch = Any  # types of this module and of the algorithms', which do not wait for torch

Velocity: TypeAlias = Mapping[str, Tensor]
"""Velocities [query, *latent] by policy: "live", with gradients, and those that the algorithm needs, without."""

Memory = Mapping[str, Any]
"""JSON values that an algorithm carries from one iteration to the next; checkpointed by the loop."""

OWNABLE = frozenset({"clip", "kernel", "eta", "roots", "steps", "solver", "guidance", "updates_per_iteration"})
"""Shared keys an arm may set itself, if its `Info.owns` says so (fairness)."""

HANDED_DOWN = frozenset({"clip", "kernel", "eta", "roots"})
"""Those of them that an algorithm honours itself: it gets the suite's value, where the suite has one."""

POLICIES = frozenset({"old", "reference", "ema"})
"""Policies beside the live one: `reference` is the untrained model, `old` and `ema` follow the live one as the
algorithm says (`Algorithm.decay`)."""

NEEDS = POLICIES | {"noise"}
"""What a loss may ask for: velocities of other policies, the noise of its edges."""

CHOICES = ("plan", "credit", "select", "loss")
"""What an algorithm must define."""

CLAIMS = frozenset({"group_size", "zero_sum", "policy_gradient"})
"""What an algorithm may claim, and is held to: `group_size` leaves a slot; leaves' advantages that sum to zero over an
iteration; a first update that is the policy gradient of the selected edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a reader must know of an algorithm before trusting a row of a table."""

    paper: str
    """Title and arXiv number."""
    reference: str
    """Official code: repository@commit, or why there is none."""
    deviations: tuple[str, ...]
    """Where this implementation differs from the paper or its code, and why."""
    owns: frozenset[str] = frozenset()
    """Shared keys this algorithm may set itself; a subset of `OWNABLE`. One that owns `clip` has a ratio of another
    kind than the per-dimension Gaussian's, and keeps its own range where the suite has one."""
    claims: frozenset[str] = CLAIMS
    """A subset of `CLAIMS`."""

    def __post_init__(self) -> None:
        if not self.owns <= OWNABLE:
            raise ValueError(f"an algorithm cannot own {sorted(self.owns - OWNABLE)}; ownable are {sorted(OWNABLE)}")
        if not self.claims <= CLAIMS:
            raise ValueError(f"an algorithm cannot claim {sorted(self.claims - CLAIMS)}; known are {sorted(CLAIMS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What an algorithm may know when it decides."""

    iteration: int
    seed: int
    sigmas: Float[np.ndarray, " knot"]
    slots: int
    """Prompts of this iteration, all processes together."""
    group_size: int
    train_steps: tuple[int, ...]
    """Steps whose edges may be trained; an arm intersects its own selection with them."""
    shift: float = 1.0
    """Of the sigma grid, for algorithms that space it anew."""
    solver: str | tuple[str, ...] = "euler"
    """Of ODE steps, as the suite has it; or one a step."""
    prompts: tuple[int, ...] = ()
    """Each slot's prompt, as its number in the training set."""
    updates: int = 1
    """Optimiser steps an iteration: the suite's, or as many as the algorithm says (`Algorithm.updates`)."""
    memory: Memory = field(default_factory=dict)

    @property
    def optimizer_steps(self) -> int:
        """Return the optimiser steps that will have been taken when this iteration ends."""
        return (self.iteration + 1) * self.updates

    @property
    def steps(self) -> int:
        """Return the number of denoising steps T."""
        return len(self.sigmas) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the rollout and one reward (or the weighted sum of all) say of a plan."""

    name: str = "total"
    """The reward's, or "total"."""
    log_prob: Float[np.ndarray, " node"]
    """Mean over the latent's dimensions, of the value as stored; NaN on ODE edges and roots."""
    reward: Float[np.ndarray, " leaf"]
    """NaN for a failed leaf."""
    leaf: Int[np.ndarray, " leaf"]
    """The leaves' node numbers."""


@runtime_checkable
class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters with four choices about a tree.

    It sees no model, optimiser, device, logger or file, and imports no other algorithm. NaN advantages (of nodes
    without a scored leaf) count as 0.
    """

    info: ClassVar[Info]

    @property
    def needs(self) -> frozenset[str]:
        """Return what the loss asks for beyond the live policy, a subset of `NEEDS`; by default nothing.

        A policy that is named is evaluated once at every query, without gradients, and its calls are counted; where
        it equals the live one, the live velocity serves.
        """
        return frozenset()

    def plan(self, ctx: Context) -> Plan:
        """Return where this iteration's forest branches and where it is stochastic."""
        ...

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """Return the advantage of every node (of its incoming edge); NaN where nothing is known."""
        ...

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """Return what is trained, with weights."""
        ...

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """Return the weighted sum over the batch's items; `velocity["live"]` is the policy's, one row a query."""
        ...

    def updates(self, ctx: Context) -> int:
        """Return the optimiser steps of every iteration, where `ctx.updates` is the suite's number; by default that.

        An algorithm that owns `updates_per_iteration` returns another, sees it in `ctx.updates` from then on, and says
        in `Selection.update` which step trains what.
        """
        return ctx.updates

    def decay(self, ctx: Context) -> Mapping[str, float]:  # noqa: ARG002
        """Return what `old` and `ema` keep of themselves after this iteration: d * itself + (1-d) * live.

        By default nothing, so that each is the live policy as the iteration began.
        """
        return {}

    def remember(self, plan: Plan, outcomes: Mapping[str, Outcome], ctx: Context) -> Memory:  # noqa: ARG002
        """Return the memory that the next iteration sees, given what `credit` was given, by name; by default the same.

        Values are JSON, so keys are text.
        """
        return ctx.memory


def checked_plan(plan: Any) -> Plan:
    """Return what `plan` returned, if it is one; else raise TypeError."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan returned {_spoken(plan)}; a Plan is wanted")
    return plan


def checked_credit(advantage: Any, plan: Plan) -> Float[np.ndarray, " node"]:
    """Return what `credit` returned, if it is one number a node; else raise TypeError."""
    if not isinstance(advantage, np.ndarray) or advantage.shape != (len(plan.tree),):
        nodes, leaves = len(plan.tree), len(plan.tree.leaves())
        wanted = f"one number a node ({nodes}) is wanted; bench.tree.fuse makes them of one a leaf ({leaves})"
        raise TypeError(f"credit returned {_spoken(advantage)}; {wanted}")
    return advantage


def checked_selection(selection: Any) -> Selection:
    """Return what `select` returned, if it is a selection; else raise TypeError."""
    if not isinstance(selection, Selection):
        raise TypeError(f"select returned {_spoken(selection)}; a Selection is wanted")
    return selection


def checked_updates(updates: Any, selection: Selection, *, owned: bool) -> int:
    """Return the optimiser steps of an iteration, if the selection agrees about them; else raise TypeError.

    Args:
        updates: what `updates` returned.
        selection: which may name the step of every query.
        owned: whether the algorithm owns `updates_per_iteration`.
    """
    if owned != (selection.update is not None):
        raise TypeError("an algorithm owns updates_per_iteration if its selection says `update`, and only then")
    if not isinstance(updates, int) or updates < 1:
        raise TypeError(f"updates returned {_spoken(updates)}; a number from 1 on is wanted")
    if selection.update is not None and selection.update.max(initial=0) >= updates:
        raise TypeError(f"select names optimiser step {selection.update.max()} of {updates}, counted from 0")
    return updates


def checked_decay(decay: Any) -> Mapping[str, float]:
    """Return what `decay` returned, if it maps policies that move to numbers in [0, 1]; else raise TypeError."""
    if not isinstance(decay, Mapping) or not decay.keys() <= POLICIES - {"reference"}:
        raise TypeError(f"decay returned {_spoken(decay)}; a mapping of 'old', 'ema' or both is wanted")
    if not all(0 <= keep <= 1 for keep in decay.values()):
        raise TypeError(f"decay returned {dict(decay)}; what a policy keeps of itself lies in [0, 1]")
    return decay


def _spoken(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"an array of shape {shape}" if shape is not None else f"{str(value)[:80]}" if value else repr(value)


@dataclass(frozen=True, slots=True)
class Named:
    """An algorithm by its name, until the harness puts the algorithm itself in its place."""

    name: str


def host(name: str) -> Any:
    """Return the default of a field of type `Algorithm`: an algorithm that builds on another knows only its name."""
    return Named(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInfo:
    """Unit, direction and origin of a score; printed wherever the score is."""

    unit: str
    low: float
    high: float
    higher_is_better: bool
    revision: str
    """Of the weights or the rule; changes whenever the same image may score differently."""
    reference: str
    media: Literal["image", "video"] = "image"
    """What is scored: images [leaf, 3, height, width], or videos [leaf, frame, 3, height, width]."""
    model: str = ""
    """Of the scorer: its architecture and where its weights are from; empty for a rule."""
    preprocessing: str = ""
    """What an image goes through before the model sees it."""
    pixels: Literal["float32", "uint8"] = "float32"
    """What is seen of a pixel: as decoded, or rounded to 8 bits, so that an image and its file score alike."""
    groupwise: bool = False
    """Whether a score compares the images of one group: such a group is scored whole, or failed whole."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it; a range without an end has null there."""
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of the hub that a scorer reads; `bench prepare --rewards` fetches what its class lists as `files`."""

    repository: str
    """Owner/name."""
    file: str
    """Its path there."""
    size: int
    """Bytes; 0 where it is not known."""
    licence: str
    about: int = 0
    """Bytes, nearly, where their number is not known."""
    restrictions: str = ""
    """A gate, or a kind of use that is not allowed."""
    revision: str = ""
    """A branch, tag or commit; empty for the main branch."""
    kind: Literal["model", "dataset"] = "model"
    instead: tuple[str, ...] = ()
    """Paths of which one does as well where the file is not there, such as weights in another format; best first."""
    optional: bool = False
    """Whether the repository, or the folder, may do without it."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths of which the first that is there is read."""
        return self.file, *self.instead

    @property
    def origin(self) -> str:
        """Return the repository."""
        return self.repository


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFile:
    """A small file outside the hub that a scorer reads; `bench prepare --rewards` keeps it in the program's cache."""

    address: str
    file: str
    """Its name here."""
    sha256: str = ""
    """Of its contents, where it is known: other files have the same size."""
    size: int
    """Bytes; 0 where it is not known."""
    licence: str
    about: int = 0
    """Bytes, nearly, where their number is not known."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Return its name."""
        return (self.file,)

    @property
    def origin(self) -> str:
        """Return the address."""
        return self.address


class UnavailableError(RuntimeError):
    """A scorer that is not there now, such as a server that is down: the cell stops where it is, to go on later.

    Any other error of a scorer fails the images that it was asked for.
    """


PAUSED = "paused: "
"""How the error of such a cell begins."""


def means(default: Any) -> Any:
    """Return the default of a scorer's option that moves no score: an address, a folder, a time-out.

    Records leave it out, so that a run goes on where its scorer has moved.
    """
    return field(default=default, metadata={"means": True})


@runtime_checkable
class Reward(Protocol):
    """Scores a batch of images.

    A class without options takes no arguments, and may load what it needs as it is constructed. One with options is a
    frozen dataclass, of which these are the fields: `pickscore(scale=logit)`. It is constructed to be looked at, in
    processes that score nothing, so that heavy imports and weights wait for its method `load()`, which is called
    once, before the first image. A scorer may have besides:

    - `files: tuple[HubFile | WebFile, ...]`, what it reads, and the option `weights`, a folder that has them;
    - `check()`, which raises FileNotFoundError where it reads what no list of files says;
    - `packages: tuple[str, ...]`, modules that it imports, and the extra of this distribution that brings them all;
    - `memory: int`, bytes of its weights in memory, about, and `shares`, equal in those that have the same in memory;
    - `label: str`, its name in records, where the class's is not enough;
    - `failures: Sequence[str]`, why images of its last call are NaN, where it knows; records tell it;
    - `waits = True`, if it has time-outs of its own.
    """

    info: ClassVar[RewardInfo]
    """What its numbers mean; a property, where options say it."""

    def __call__(
        self,
        images: Float[Tensor, "leaf *frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],
    ) -> Float[np.ndarray, " leaf"]:
        """Return one score an image; NaN where scoring failed, never a made-up number.

        Args:
            images: RGB in [0, 1], float32, on the policy's device; or videos, as `info.media` says.
            prompts: one an image.
            group: slot of each image, for rewards that compare images of one prompt.
        """
        ...
