"""How far apart arms' rollouts of the base model are: the table, what it means, and the images on two axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bench.record import DiversityRecord
from reports.grid import Cell, Column, Grid, csv_text, grid, plain
from reports.numbers import short
from reports.published import BRANCH, DANCE, PUBLISHED_DIVERSITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The images of all arms on the two directions in which they vary most."""

    arms: tuple[tuple[str, Float[np.ndarray, "image 2"]], ...]
    """Label and coordinates; the first is the reference."""
    explained: tuple[float, float]
    """Share of the variance along each axis."""


def diversity_grid(record: DiversityRecord | None) -> Grid:
    """Return the distances of the arms' images; without a measurement, no row."""
    columns = [
        Column(title="method", numeric=False, code=True),
        Column(title="images"),
        Column(title="KID", group="from the reference"),
        Column(title="MMD²", group="from the reference"),
        Column(title="distance", group="within a prompt"),
    ]
    arms = record.result["arms"] if record else []
    rows = [
        (
            Cell(text=one["arm"], sub="" if at else "reference: the floor"),
            str(one["n"]),
            *(short(one["kid"]), short(one["mmd2"]), short(one["spread"])),
        )
        for at, one in enumerate(arms)
    ]
    return grid(columns, rows)


def published_diversity_grid(record: DiversityRecord | None) -> Grid:
    """Return what the BranchGRPO paper reports, where its two methods were measured here; else no row."""
    papers = [one["info"]["paper"] for one in record.result["arms"]] if record else []
    wanted = bool(papers) and DANCE in papers[0] and any(BRANCH in paper for paper in papers[1:])
    rows = [(one.what, one.features, one.kid, one.mmd2) for one in PUBLISHED_DIVERSITY if wanted]
    return grid(["published", "features", Column(title="KID"), Column(title="MMD²")], rows)


def diversity_legend(record: DiversityRecord | None) -> list[str]:
    """Return what a reader must know of these distances."""
    if record is None:
        return []
    result = record.result
    reference, seeds = result["arms"][0]["arm"], ", ".join(map(str, result["seeds"]))
    other = ", ".join(map(str, result["noise_seeds"]))
    return [
        f"Rollouts of the untrained model: the first {result['rollouts']} iterations of seed {seeds}, "
        f"{len(result['prompts'])} prompts; every arm has the same prompts and the same keyed noise.",
        f"KID and MMD² are distances from {result['n']} images that {reference} samples for these prompts under the "
        f"noise of seed {other}, in image features of {result['features']}. KID: unbiased, kernel (x·y/d + 1)³. MMD²: "
        f"unbiased, RBF kernel of bandwidth {short(result['bandwidth'])}, the median distance of these images.",
        f"The row of {reference} is the floor: the same arm under two noises. It is not 0, as the images of a prompt "
        "that share their initial noise are alike; only what exceeds it tells an arm from the reference.",
        "Distance within a prompt: the mean over pairs of images of one prompt and rollout, in the same features.",
    ]


def diversity_csv(record: DiversityRecord) -> str:
    """Return the table with all digits."""
    rows = [(one["arm"], one["n"], one["kid"], one["mmd2"], one["spread"]) for one in record.result["arms"]]
    return csv_text(["method", "images", "kid", "mmd2", "distance_within_prompt"], rows)


def terminal(record: DiversityRecord | None) -> list[str]:
    """Return the table for a terminal; nothing without a measurement."""
    if record is None:
        return []
    about = "  rollouts of the base model: distances from images of the reference under other noise"
    return ["", *plain(diversity_grid(record)), about]


def projection(record: DiversityRecord | None) -> Projection | None:
    """Return the images of all arms on the first two principal axes of all of them together; None without any."""
    if record is None:
        return None
    coordinates, explained = principal(np.concatenate(record.features))
    ends = np.cumsum([len(one) for one in record.features])[:-1]
    parts = np.split(coordinates, ends)
    labels = [one["arm"] for one in record.result["arms"]]
    return Projection(arms=tuple(zip(labels, parts, strict=True)), explained=explained)


def principal(
    features: Float[np.ndarray, "image feature"],
) -> tuple[Float[np.ndarray, "image 2"], tuple[float, float]]:
    """Return the coordinates on the first two principal axes, and the share of variance along each.

    An axis has no sign of its own: it points to where its largest component is positive.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    share = np.square(scale) / np.square(scale).sum()
    return centred @ axes.T, (float(share[0]), float(share[1]))


def thinned(points: Float[np.ndarray, "image 2"], most: int) -> Float[np.ndarray, "shown 2"]:
    """Return at most so many points, evenly spread over their order."""
    count = min(most, len(points))
    return points[np.arange(count) * len(points) // count]
