"""Records: what a cell leaves on disk, written so that a kill at any moment loses nothing. No torch.

    runs/<suite>/suite.yaml                    name, preset, shared configuration
    runs/<suite>/base-<hash>/                  the base model on the held-out prompts: result.json, features.npz
    runs/<suite>/<arm>-s<seed>-<hash>/         one cell: config.yaml, metrics.jsonl, checkpoints/, samples/,
                                               pipeline/, result.json, environment.json, and DONE, written last

    runs/<suite>/diversity/                    rollouts of the base model by several arms: result.json, features.npz

`metrics.jsonl` has a row an iteration (`Row`); `result.json` is a `Result`, of the base a `BaseResult`, of diversity a
`Diversity`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from bench.writing import writing

VERSION = 2
"""Of rows and results; readers keep reading every version that was ever released. Since 2, a row's drift and ratio
statistics may be null, `nfe` has `named`, and `calls` those policies."""

Scores = dict[str, list[list[float | None]]]
"""Metric -> prompt -> sample k; null is a failed score. The same (prompt, k) has the same noise in every cell."""


class Unit(TypedDict):
    """What a metric's numbers mean."""

    unit: str
    low: float | None
    high: float | None
    """None where there is no end."""
    higher_is_better: bool
    revision: str
    reference: str
    model: NotRequired[str]
    """Of a scorer that has one; records of the first versions do not say."""
    preprocessing: NotRequired[str]


Calls = dict[str, int]
"""Rows of policy evaluations by kind: rollout, update, anchor, and old, reference, ema where a loss needs them."""


class Row(TypedDict):
    """One iteration."""

    iteration: int
    reward: dict[str, float]
    """Mean over scored leaves, by reward."""
    reward_std: dict[str, float]
    """Std over scored leaves, by reward."""
    reward_total: float
    """Mean of the weighted sum."""
    loss: float
    grad_norm: float
    drift: float | None
    log_ratio_max: float | None
    clip_fraction: float | None
    nfe: dict[str, dict[str, float]]
    """As `bench.cost.Nfe.nested`: this iteration's, per leaf."""
    calls: Calls
    seconds: dict[str, float]
    """By phase: rollout, score, credit, update, other; their sum is the iteration's wall clock."""
    samples: int
    """Leaves rolled out."""
    failed: int
    """Leaves without a score."""
    failures: list[str]
    """What their scorers said."""
    warnings: list[str]
    """What a reader should know of this iteration's numbers."""
    peak_memory_bytes: int


class Drift(TypedDict):
    """Distance of a set of samples from base samples of a disjoint noise stream."""

    kid: float | None
    """None, as mmd2 and bandwidth, where no features were taken."""
    mmd2: float | None
    bandwidth: float | None
    """Of the RBF kernel of mmd2: the median distance between base samples."""
    features: str
    """The scorer in whose image features it is measured."""
    n: int


class Result(TypedDict):
    """A finished cell."""

    version: int
    suite: str
    arm: str
    algo: str
    seed: int
    hash: str
    base: str
    """Folder name of the base record."""
    info: dict[str, Any]
    """paper, reference, deviations, owns."""
    shared: dict[str, Any]
    """The suite's shared configuration."""
    effective: dict[str, Any]
    """The shared keys as this arm ran them: where it owns a key, its own value."""
    algorithm: dict[str, Any]
    """All hyper-parameters of the algorithm."""
    nfe: dict[str, dict[str, float]]
    """Mean over the iterations that ran."""
    calls: Calls
    samples: int
    failed: int
    iterations: int
    seconds: float
    """Training wall clock, evaluation excluded."""
    seconds_per_iteration: dict[str, float]
    """Median by phase and `total`, the first iteration dropped as warm-up."""
    peak_memory_bytes: int
    flops_per_call: float
    evaluation: Scores
    """After training; before it, see the base record."""
    evaluation_failures: list[str]
    """What scorers said of images they could not score."""
    units: dict[str, Unit]
    drift: Drift
    prompt_counts: NotRequired[dict[str, int]]
    """How many prompts were read, and what became of them (`bench.data.Counts`); older records have none."""


class BaseResult(TypedDict):
    """The base model, evaluated as every cell is."""

    version: int
    shared: dict[str, Any]
    prompts: list[str]
    evaluation: Scores
    units: dict[str, Unit]
    drift: Drift
    """Base against base: the floor below which no drift is seen."""
    prompt_counts: NotRequired[dict[str, int]]


class DiversityArm(TypedDict):
    """The images of an arm's rollouts on the base model."""

    arm: str
    algo: str
    info: dict[str, Any]
    effective: dict[str, Any]
    algorithm: dict[str, Any]
    n: int
    """Images."""
    kid: float
    """From images of the reference arm under other noise; so is mmd2."""
    mmd2: float
    spread: float
    """Mean feature distance between two images of one prompt and rollout."""


class Diversity(TypedDict):
    """How far apart the rollouts of several arms are on one model, the base."""

    version: int
    shared: dict[str, Any]
    features: str
    """The scorer in whose image features it is measured."""
    bandwidth: float
    """Of the RBF kernel of mmd2: the median distance between the images compared with."""
    rollouts: int
    """Iterations of each seed, from the first."""
    seeds: list[int]
    noise_seeds: list[int]
    """Of the noise of the images compared with, seed by seed; their prompts are those of `seeds`."""
    prompts: list[str]
    """Distinct ones, in the order in which they came."""
    n: int
    """Images compared with."""
    arms: list[DiversityArm]
    """The first is the reference; its own distance is the floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversityRecord:
    """A diversity measurement as read back."""

    result: Diversity
    features: list[np.ndarray]
    """An array (image, feature) an arm."""
    reference: np.ndarray
    """Of the images compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """A cell as read back."""

    folder: Path
    config: dict[str, Any]
    """config.yaml."""
    rows: list[Row]
    result: Result | None
    """None until the cell is done."""
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRecord:
    """A suite as read back: what a report is made of."""

    folder: Path
    suite: dict[str, Any]
    """suite.yaml."""
    cells: list[CellRecord]
    bases: dict[str, BaseResult]
    """By folder name."""
    diversity: DiversityRecord | None
    """None unless it was measured."""


def read_suite(folder: Path) -> SuiteRecord:
    """Return everything a suite has recorded so far.

    Raises:
        ValueError: if the folder is not a suite's.
    """
    if not (folder / "suite.yaml").is_file():
        raise ValueError(f"{folder} is not a suite: it has no suite.yaml")
    cells = [read_cell(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    bases: dict[str, BaseResult] = {p.parent.name: read_result(p) for p in sorted(folder.glob("base-*/result.json"))}
    suite, diversity = read_yaml(folder / "suite.yaml"), read_diversity(folder / "diversity")
    return SuiteRecord(folder=folder, suite=suite, cells=cells, bases=bases, diversity=diversity)


def write_diversity(folder: Path, found: DiversityRecord) -> None:
    """Write a measurement; result.json is removed first and comes last, so that it never stands by other features."""
    folder.mkdir(exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    arrays: dict[str, Any] = {f"arm{at}": one for at, one in enumerate(found.features)}
    part = folder / "features.npz.part"
    with writing(part):
        with part.open("wb") as file:
            np.savez(file, reference=found.reference, **arrays)
        part.replace(folder / "features.npz")
    write_json(folder / "result.json", found.result)


def read_diversity(folder: Path) -> DiversityRecord | None:
    """Return a suite's diversity measurement; None if there is none."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    result: Diversity = read_result(path)
    with np.load(folder / "features.npz") as arrays:
        features = [arrays[f"arm{at}"] for at in range(len(result["arms"]))]
        return DiversityRecord(result=result, features=features, reference=arrays["reference"])


def read_cell(folder: Path) -> CellRecord:
    """Return a cell's record; `result` is None unless its DONE carries the hash of its configuration."""
    config = read_yaml(folder / "config.yaml")
    result = read_result(folder / "result.json") if is_done(folder, config["hash"]) else None
    rows = list(read_rows(folder / "metrics.jsonl"))
    if result is not None and len(rows) != (wanted := result.get("iterations", len(rows))):
        raise _damaged(folder / "metrics.jsonl", f"{len(rows)} rows of {wanted}")
    environment = folder / "environment.json"
    return CellRecord(
        folder=folder,
        config=config,
        rows=rows,
        result=result,
        environment=_mapping(json.loads, environment) if environment.is_file() else {},
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a suite.yaml or config.yaml.

    Raises:
        ValueError: if it is damaged, or of a version that this one does not know.
    """
    import yaml

    found = _mapping(yaml.safe_load, path)
    if found.get("version", 1) != 1:
        raise ValueError(f"{path} has version {found['version']}; this Arbor reads 1: upgrade it")
    return found


def read_result(path: Path) -> Any:
    """Return a result.json, of a cell or of the base.

    Raises:
        ValueError: if it is damaged, or of a version that this one does not know.
    """
    record = _mapping(json.loads, path)
    version = record.get("version")
    if version is None:
        raise _damaged(path, "it has no version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(f"{path} has record version {version}; this Arbor reads 1 to {VERSION}: upgrade it")
    return record


def name_and_weight(item: str) -> tuple[str, str | None]:
    """Return both parts of `name:weight`, None for a weight that is not there; colons in brackets are the name's."""
    end = item.rfind(")") + 1
    name, sign, weight = item[end:].partition(":")
    return (item[:end] + name).strip(), weight if sign else None


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the complete rows of a metrics file; a last line cut short by a kill is not one.

    Raises:
        ValueError: if a line is damaged.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise _damaged(path, f"line {number}: {error}") from error


def append_row(path: Path, row: Row) -> None:
    """Append an iteration's row."""
    with writing(path), path.open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_rows(path: Path, iterations: int) -> None:
    """Keep only the rows of the first `iterations`: what a checkpoint does not hold has not happened."""
    rows = [row for row in read_rows(path) if row["iteration"] < iterations]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def is_done(folder: Path, digest: str) -> bool:
    """Return whether the cell is finished, under this very configuration."""
    done = folder / "DONE"
    return done.is_file() and (folder / "result.json").is_file() and done.read_text().strip() == digest


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name, then rename it, so that it is whole or absent."""
    part = folder.with_name(folder.name + ".part")
    for stale in (part, folder):
        shutil.rmtree(stale, ignore_errors=True)
    with writing(part):
        write(part)
        part.replace(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary name, so that the file is whole or absent."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file through a temporary name and a rename."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def _mapping(parse: Callable[[str], Any], path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = parse(path.read_text())
    except (ValueError, yaml.YAMLError, FileNotFoundError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it holds no mapping")
    return value


def _damaged(path: Path, why: str) -> ValueError:
    what = str(path if path.name == "suite.yaml" else path.parent)
    if path.parent.name.startswith("base-"):
        what += ", and the DONE of a cell that is measured against it,"  # whoever finishes a cell makes its base
    return ValueError(f"{path} is damaged ({why}); delete {what} and run again")
