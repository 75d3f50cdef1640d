"""The numbers of the report's main table: a line for the base model, then one an arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bench.record import BaseResult, Drift, Result, SuiteRecord, Unit
from eval.statistics import Interval, interval, overlap, per_prompt
from reports.arms import Arm, arms, base_of, trained_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """An evaluation metric of the suite."""

    name: str
    unit: Unit
    trained: bool
    """Whether it is also the reward of training; else it is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a line says of a metric."""

    mean: float
    gain: Interval | None = None
    """Improvement over the base model, positive is better; none for the base itself."""
    best: bool = False
    """Whether no other arm's interval reaches this one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of the main table. None is what the base model, or an unfinished arm, does not have."""

    label: str
    is_base: bool = False
    seeds: int = 0
    unfinished: int = 0
    """Cells of it without a result."""
    failed: int = 0
    """Leaves without a score, all seeds together."""
    samples: int = 0
    nfe: Mapping[str, float] | None = None
    """rollout.paper, rollout.edges, rollout.calls, update.edges, update.calls, per leaf; and named.old and others, for
    the policies whose velocities the loss asks."""
    seconds: Mapping[str, float] | None = None
    """Of an iteration, by phase and total: the median over seeds of each cell's median."""
    flops: float | None = None
    """Of an iteration, model only; the convention is `FLOPS`."""
    peak_memory_bytes: int | None = None
    scores: Mapping[str, Score]
    kid: float | None = None
    """Mean over seeds, as is mmd2."""
    mmd2: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What the report is about."""

    metrics: tuple[Metric, ...]
    lines: tuple[Line, ...]
    drifts: tuple[Drift, ...]
    """Of the base records: in which features, with which bandwidth, over how many samples."""


FLOPS = "model FLOPs of one call × (all calls + 2 × update calls): a backward pass counts as two forward passes"


def results(record: SuiteRecord, suite_arms: Sequence[Arm] | None = None) -> Results:
    """Return the main table's numbers."""
    found = arms(record) if suite_arms is None else tuple(suite_arms)
    metrics = _metrics(record, found)
    several = len(record.bases) > 1
    lines = [
        _base_line(f"base model ({name})" if several else "base model", base, metrics)
        for name, base in record.bases.items()
    ]
    lines += [_arm_line(arm, record.bases, metrics) for arm in found]
    return Results(
        metrics=metrics,
        lines=_marked(lines, metrics),
        drifts=tuple(base["drift"] for base in record.bases.values()),
    )


def _metrics(record: SuiteRecord, found: Sequence[Arm]) -> tuple[Metric, ...]:
    units: dict[str, Unit] = {}
    for source in (*record.bases.values(), *(result for arm in found for result in arm.results)):
        for name in source["evaluation"]:
            units.setdefault(name, source["units"][name])
    trained = {name for arm in found for name in trained_on(arm.config["shared"])}
    trained |= set(trained_on(record.suite["shared"]))
    return tuple(Metric(name=name, unit=unit, trained=name in trained) for name, unit in units.items())


def _base_line(label: str, base: BaseResult, metrics: Sequence[Metric]) -> Line:
    scores = {
        metric.name: Score(mean=_mean(_array(base["evaluation"][metric.name])))
        for metric in metrics
        if metric.name in base["evaluation"]
    }
    return Line(label=label, is_base=True, scores=scores, kid=base["drift"]["kid"], mmd2=base["drift"]["mmd2"])


def _arm_line(arm: Arm, bases: Mapping[str, BaseResult], metrics: Sequence[Metric]) -> Line:
    done = arm.results
    if not done:
        return Line(label=arm.label, unfinished=len(arm.unfinished), scores={})
    phases = list(dict.fromkeys(phase for result in done for phase in result["seconds_per_iteration"]))
    return Line(
        label=arm.label,
        seeds=len(done),
        unfinished=len(arm.unfinished),
        failed=sum(result["failed"] for result in done),
        samples=sum(result["samples"] for result in done),
        nfe={
            f"{part}.{kind}": float(np.mean([result["nfe"][part][kind] for result in done]))
            for part, kinds in done[0]["nfe"].items()
            for kind in kinds
        },
        seconds={p: float(np.median([r["seconds_per_iteration"].get(p, 0.0) for r in done])) for p in phases},
        flops=_flops(done),
        peak_memory_bytes=max(result["peak_memory_bytes"] for result in done),
        scores=_scores(done, bases, metrics),
        kid=_mean_of([result["drift"]["kid"] for result in done]),
        mmd2=_mean_of([result["drift"]["mmd2"] for result in done]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of numbers; None if one is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _scores(done: Sequence[Result], bases: Mapping[str, BaseResult], metrics: Sequence[Metric]) -> dict[str, Score]:
    """Return each metric over the seeds that have it."""
    scores = {}
    for metric in metrics:
        having = [result for result in done if metric.name in result["evaluation"]]
        if not having:
            continue
        after = [_array(result["evaluation"][metric.name]) for result in having]
        mean = float(np.mean([_mean(scores) for scores in after]))
        pairs = [_paired(result, base_of(result, bases), metric.name) for result in having]
        if not all(pairs):
            scores[metric.name] = Score(mean=mean)
            continue
        old, new = (np.stack(side) for side in zip(*filter(None, pairs), strict=True))
        gain = interval(old, new) if metric.unit["higher_is_better"] else interval(new, old)
        scores[metric.name] = Score(mean=mean, gain=gain)
    return scores


def _paired(
    result: Result, base: BaseResult, metric: str
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]] | None:
    """Return each prompt's score before and after training; None where the base was not scored by the metric."""
    if metric not in base["evaluation"]:
        return None
    before, after = _array(base["evaluation"][metric]), _array(result["evaluation"][metric])
    if before.shape != after.shape:
        raise ValueError(
            f"{result['arm']} seed {result['seed']}: {metric} has scores of {after.shape[0]} prompts "
            f"× {after.shape[1]} samples, its base model of {before.shape[0]} × {before.shape[1]}"
        )
    return per_prompt(before, after)


def _flops(done: Sequence[Result]) -> float | None:
    """Return the model FLOPs of an iteration by the convention `FLOPS`; None where a model does not say its own."""
    if any(result["flops_per_call"] <= 0 or result["iterations"] == 0 for result in done):
        return None
    each = [
        result["flops_per_call"]
        * (sum(result["calls"].values()) + 2 * result["calls"]["update"])
        / result["iterations"]
        for result in done
    ]
    return float(np.mean(each))


def _marked(lines: Sequence[Line], metrics: Sequence[Metric]) -> tuple[Line, ...]:
    """Return the lines with the best improvement of each metric marked, where there is one beyond doubt."""
    best = {metric.name: _best(lines, metric.name) for metric in metrics}
    return tuple(
        dataclasses.replace(
            line,
            scores={name: dataclasses.replace(score, best=best[name] is line) for name, score in line.scores.items()},
        )
        for line in lines
    )


def _best(lines: Sequence[Line], metric: str) -> Line | None:
    """Return the line whose improvement no other arm's reaches; None with one seed, which cannot tell arms apart."""
    having: list[tuple[Interval, Line]] = []
    for line in lines:
        gain = line.scores[metric].gain if metric in line.scores else None
        if gain is not None and np.isfinite(gain.mean):
            having.append((gain, line))
    if len(having) < 2 or min(gain.seeds for gain, _ in having) < 2:
        return None
    top, line = max(having, key=lambda pair: pair[0].mean)
    others = [gain for gain, other in having if other is not line]
    return None if top.mean <= 0 or any(overlap(top, other) for other in others) else line


def _array(scores: Sequence[Sequence[float | None]]) -> Float[np.ndarray, "prompt sample"]:
    return np.array([[np.nan if value is None else value for value in row] for row in scores], np.float64)


def _mean(scores: Float[np.ndarray, "prompt sample"]) -> float:
    valid = scores[np.isfinite(scores)]
    return float(valid.mean()) if len(valid) else float("nan")
