"""What papers report, as data: each value with its source and the settings without which it is another quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from reports.arms import Arm, settings
from reports.grid import Column, Grid, grid
from reports.numbers import NONE, fixed, plain_value, short, trimmed
from reports.results import Line

BRANCH_TABLE = "BranchGRPO (arXiv 2509.06040), table 1"
BRANCH_DENSITY = "BranchGRPO (arXiv 2509.06040), branch density"
BRANCH_FUSION = "BranchGRPO (arXiv 2509.06040), reward fusion"
MIX_TABLE = "MixGRPO (arXiv 2507.21802), main table"
DANCE, MIX, BRANCH = "2505.07818", "2507.21802", "2509.06040"
"""arXiv numbers: a method is known by the paper that its arm names."""

Needs = Mapping[str, tuple[Any, ...]]
"""Setting -> the values under which the published one is the same quantity."""

FLUX: Needs = {"model": ("FLUX.1-dev", "flux-dev")}
_DANCE: Needs = {
    **FLUX,
    "steps": (20,),
    "kernel": ("dance_sde",),
    "eta": (0.3,),
    "roots": ("shared",),
    "scope": ("group",),
}
_MIX: Needs = {**FLUX, "strategy": ("progressive",), "stride": (1,)}
_BRANCH: Needs = {
    **FLUX,
    "steps": (20,),
    "group_size": (16,),
    "kernel": ("dance_sde",),
    "eta": (0.3,),
    "factor": (2,),
    "splits": ("dense", [0, 3, 6, 9]),
    "s": (4.0,),
    "fusion": ("path",),
    "beta": (1.0,),
    "credit_by": ("depth",),
    "width": ("none",),
    "depth": (False,),
    "mix": (False,),
}

_NODES = "the NFE count nodes, root and leaves included; training is quoted at the same number"
_HYBRID = "its images come from the tuned model for 30 of 50 steps and from the base model after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A row of a paper's table."""

    method: str
    arxiv: str
    """Of the method, which need not be the paper that reports the row; empty for the base model."""
    source: str
    needs: Needs
    nfe: tuple[str, str] | None = None
    """Rollout and update, in the paper's digits."""
    seconds: float | None = None
    scores: Mapping[str, float]
    note: str = ""


def _four(hps: float, pick: float, image_reward: float, unified: float) -> dict[str, float]:
    return {"HPS v2.1": hps, "PickScore ÷ 100": pick, "ImageReward": image_reward, "UnifiedReward": unified}


def _ablation(hps: float, pick: float, image_reward: float, clip: float) -> dict[str, float]:
    return {"HPS v2.1": hps, "PickScore ÷ 100": pick, "ImageReward": image_reward, "CLIP": clip}


PUBLISHED: tuple[Published, ...] = (
    Published(method="FLUX.1-dev", arxiv="", source=BRANCH_TABLE, needs=FLUX, scores=_four(0.313, 0.227, 1.112, 3.370)),
    Published(
        method="DanceGRPO (tf=1.0)",
        arxiv=DANCE,
        source=BRANCH_TABLE,
        needs={**_DANCE, "tf": (1.0,)},
        nfe=("20", "20"),
        seconds=698.0,
        scores=_four(0.360, 0.234, 1.612, 3.388),
        note="the official code trains 19 of the 20 steps",
    ),
    Published(
        method="DanceGRPO (tf=0.6)",
        arxiv=DANCE,
        source=BRANCH_TABLE,
        needs={**_DANCE, "tf": (0.6,)},
        nfe=("20", "12"),
        seconds=469.0,
        scores=_four(0.353, 0.228, 1.517, 3.362),
        note="12 is 0.6 · 20; the official code trains int(0.6 · 19) = 11",
    ),
    Published(
        method="MixGRPO (20, 5)",
        arxiv=MIX,
        source=BRANCH_TABLE,
        needs={**_MIX, "steps": (20,), "window": (5,)},
        nfe=("20", "5"),
        seconds=289.0,
        scores=_four(0.359, 0.228, 1.594, 3.380),
        note="a window of 5; the MixGRPO paper's own is 4",
    ),
    Published(
        method="BranchGRPO",
        arxiv=BRANCH,
        source=BRANCH_TABLE,
        needs=_BRANCH,
        nfe=("13.68", "13.68"),
        seconds=493.0,
        scores=_four(0.363, 0.229, 1.603, 3.386),
        note=f"{_NODES}; 219 ÷ 16 = 13.6875",
    ),
    Published(
        method="BranchGRPO-WidPru",
        arxiv=BRANCH,
        source=BRANCH_TABLE,
        needs={**_BRANCH, "width": ("parent-top1",)},
        nfe=("13.68", "8.625"),
        seconds=314.0,
        scores=_four(0.364, 0.231, 1.609, 3.383),
        note="8.625 = 138 ÷ 16 counts the last step's edges, which are never trained here: 8.125",
    ),
    Published(
        method="BranchGRPO-DepPru",
        arxiv=BRANCH,
        source=BRANCH_TABLE,
        needs={**_BRANCH, "depth": (True,), "window": (4,), "slide": (30,)},
        nfe=("13.68", "8.625"),
        seconds=314.0,
        scores=_four(0.369, 0.235, 1.625, 3.404),
        note="8.625 = 138 ÷ 16 holds for a window of 4 only if the last step is untrained, as here",
    ),
    Published(
        method="BranchGRPO-Mix",
        arxiv=BRANCH,
        source=BRANCH_TABLE,
        needs={**_BRANCH, "mix": (True,), "window": (4,), "slide": (30,)},
        nfe=("13.68", "4.25"),
        seconds=148.0,
        scores=_four(0.363, 0.230, 1.598, 3.384),
        note="4.25 cannot be derived from the method: at the window's start 34 edges ÷ 16 leaves = 2.125 are trained, "
        "half of it; 148 s agrees with 2.125",
    ),
    Published(
        method="BranchGRPO, mixed splits",
        arxiv=BRANCH,
        source=BRANCH_DENSITY,
        needs={**_BRANCH, "splits": ("mixed", [0, 4, 8, 12])},
        nfe=("11.56", "11.56"),
        seconds=416.0,
        scores=_ablation(0.359, 0.229, 1.594, 0.374),
        note=f"{_NODES}; 185 ÷ 16 = 11.5625",
    ),
    Published(
        method="BranchGRPO, sparse splits",
        arxiv=BRANCH,
        source=BRANCH_DENSITY,
        needs={**_BRANCH, "splits": ("sparse", [0, 5, 10, 15])},
        nfe=("9.44", "9.44"),
        seconds=340.0,
        scores=_ablation(0.354, 0.228, 1.565, 0.366),
        note=f"{_NODES}; 151 ÷ 16 = 9.4375",
    ),
    Published(
        method="BranchGRPO, uniform fusion",
        arxiv=BRANCH,
        source=BRANCH_FUSION,
        needs={**{k: v for k, v in _BRANCH.items() if k != "beta"}, "fusion": ("uniform",)},
        scores=_ablation(0.361, 0.229, 1.595, 0.368),
    ),
    Published(
        method="DanceGRPO (25, 14)",
        arxiv=DANCE,
        source=MIX_TABLE,
        needs={**_DANCE, "steps": (25,), "tf": (0.6,)},
        nfe=("25", "14"),
        seconds=291.284,
        scores=_four(0.356, 0.233, 1.436, 3.397),
        note=_HYBRID,
    ),
    Published(
        method="MixGRPO (25, 4)",
        arxiv=MIX,
        source=MIX_TABLE,
        needs={**_MIX, "steps": (25,), "window": (4,), "tau": (25,), "kernel": ("flow_sde",), "eta": (0.7,)},
        nfe=("25", "4"),
        seconds=150.839,
        scores=_four(0.367, 0.237, 1.629, 3.418),
        note=_HYBRID,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedDiversity:
    """A published distance between rollouts of two methods, in the paper's digits."""

    what: str
    features: str
    kid: str
    mmd2: str


PUBLISHED_DIVERSITY = (
    PublishedDiversity(what="BranchGRPO against DanceGRPO rollouts", features="Inception", kid="0.0057", mmd2="0.0067"),
    PublishedDiversity(what="BranchGRPO against DanceGRPO rollouts", features="CLIP", kid="0.00022", mmd2="0.0149"),
)
"""Of BranchGRPO, arXiv 2509.06040, on FLUX.1-dev."""
DIVERSITY_CONTEXT = (
    "BranchGRPO (arXiv 2509.06040), on FLUX.1-dev. The paper states neither the layer or scale of its features, nor "
    "the kernel's bandwidth, nor a floor: context for our numbers, not values to compare them with."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A published row beside an arm, or the base model, with what keeps the two apart."""

    label: str
    row: Published
    differences: tuple[str, ...] = field(default=())


def placed(arms: Sequence[Arm], shared: Mapping[str, Any]) -> list[Placed]:
    """Return, for the base model and each arm, the published rows of its settings, else the nearest of its method."""
    found = _place("base model", "", shared)
    for arm in arms:
        found += _place(arm.label, arm.config["info"]["paper"], settings(arm.config))
    return found


def differences(needs: Needs, mine: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings that differ from those a published value needs, in words."""
    return tuple(
        f"{key} {plain_value(mine[key]) if key in mine else 'unknown'}, published {plain_value(accepted[0])}"
        for key, accepted in needs.items()
        if key not in mine or _normal(key, mine[key]) not in accepted
    )


def published_grid(rows: Sequence[Placed], ours: Mapping[str, Line], *, nearest: bool) -> Grid:
    """Return the published rows that stand beside an arm; or those that are only nearest, with the differences.

    Args:
        rows: what `placed` found.
        ours: the main table's lines by label, for costs beside the published ones.
        nearest: which of the two.
    """
    kept = [one for one in rows if bool(one.differences) == nearest]
    names = list(dict.fromkeys(name for one in kept for name in one.row.scores))
    costs = ("NFE rollout, paper's definition", "NFE update, edges", "s / iteration")
    columns = [
        Column(title="method", numeric=False, code=True),
        "published as",
        *(["differs in"] if nearest else []),
        *(Column(title=title, group=group) for group in costs for title in ("published", "ours")),
        *(Column(title=name, group="published score") for name in names),
        "note",
        "source",
    ]
    return grid(columns, [_cells(one, ours.get(one.label), names, nearest=nearest) for one in kept])


def _cells(one: Placed, ours: Line | None, names: Sequence[str], *, nearest: bool) -> tuple[str, ...]:
    row, (rollout, update) = one.row, one.row.nfe or (NONE, NONE)
    nfe, seconds = (ours.nfe or {}, ours.seconds or {}) if ours else ({}, {})
    return (
        one.label,
        row.method,
        *(["; ".join(one.differences)] if nearest else []),
        *(rollout, trimmed(nfe.get("rollout.paper"))),
        *(update, trimmed(nfe.get("update.edges"))),
        *(fixed(row.seconds, 0), short(seconds.get("total"))),
        *(fixed(row.scores.get(name), 3) for name in names),
        row.note or NONE,
        row.source,
    )


def _place(label: str, paper: str, mine: Mapping[str, Any]) -> list[Placed]:
    own = [row for row in PUBLISHED if (row.arxiv in paper if row.arxiv else not paper)]
    rows = [Placed(label=label, row=row, differences=differences(row.needs, mine)) for row in own]
    exact = [one for one in rows if not one.differences]
    return exact or sorted(rows, key=lambda one: _apart(one.row.needs, mine))[:1]


def _apart(needs: Needs, mine: Mapping[str, Any]) -> int:
    """Return how many settings differ; one that an arm does not have makes no row nearer than another."""
    return sum(key in mine and _normal(key, mine[key]) not in accepted for key, accepted in needs.items())


def _normal(key: str, value: Any) -> Any:
    """Return a setting as `Needs` spells it: a model by its name, wherever it was loaded from."""
    if key == "model" and PurePath(value).name == "FLUX.1-dev":
        return "FLUX.1-dev"
    return list(value) if isinstance(value, tuple) else value
