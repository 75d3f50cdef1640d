"""The report's tables: what stands in which column, how it is written, and the legend that says what it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.record import Drift, Unit
from reports.arms import Arm
from reports.grid import Cell, Column, Grid, csv_text, grid, plain, select
from reports.numbers import NONE, decimals, fixed, plain_value, reach, scale, short, trimmed, uncertain
from reports.results import FLOPS, Line, Metric, Results

NFE = (
    ("rollout.paper", "NFE rollout", "paper"),
    ("rollout.edges", "NFE rollout", "edges"),
    ("rollout.calls", "NFE rollout", "calls"),
    ("update.edges", "NFE update", "edges"),
    ("update.calls", "NFE update", "calls"),
)
"""Key, group and title of the cost columns that every report has."""

PHASES = ("rollout", "score", "credit", "update", "other")


def nfe_columns(results: Results) -> tuple[tuple[str, str, str], ...]:
    """Return key, group and title of the cost columns: the usual, and the other policies that some arm's loss asks."""
    keys = {key for line in results.lines for key in line.nfe or {} if key.startswith("named.")}
    return (*NFE, *((key, "calls of other policies", key.removeprefix("named.")) for key in sorted(keys)))


def scores_grid(results: Results) -> Grid:
    """Return the main table: method, cost, scores with intervals, drift."""
    columns = [
        Column(title="method", numeric=False, code=True),
        *(Column(title=title, group=group) for _, group, title in nfe_columns(results)),
        Column(title="s / iteration"),
        *(Column(title=metric.name, group=_role(metric), note=_direction(metric)) for metric in _ordered(results)),
        Column(title="KID", group="drift"),
        Column(title="MMD²", group="drift"),
        Column(title="seeds"),
    ]
    if any(line.failed for line in results.lines):
        columns.append(Column(title="failed leaves"))
    rows = [
        (*_method(line), *_cost(line, results), *_score_cells(line, results), *_rest(line), *_failed(line))[
            : len(columns)
        ]
        for line in results.lines
    ]
    return grid(columns, rows)


def halves(results: Results) -> tuple[Grid, Grid]:
    """Return the main table in two that fit a printed page: scores, then cost."""
    main = scores_grid(results)
    cost = range(1, 2 + len(nfe_columns(results)))
    return select(main, [at for at in range(len(main.columns)) if at not in cost]), select(main, [0, *cost])


def terminal(results: Results) -> list[str]:
    """Return the same table in two blocks that fit a terminal, scores, then cost; nothing where it has no line."""
    if not results.lines:
        return []
    scores = grid(
        [
            Column(title="method", numeric=False),
            *(Column(title=f"{metric.name}{'*' if metric.trained else ''}") for metric in _ordered(results)),
            Column(title="seeds"),
        ],
        [(line.label, *_score_cells(line, results), _seeds(line)) for line in results.lines],
    )
    cost = grid(
        [
            Column(title="method", numeric=False),
            *(Column(title=title, group=group) for _, group, title in nfe_columns(results)),
            Column(title="s/iter"),
            Column(title="KID", group="drift"),
            Column(title="MMD²", group="drift"),
        ],
        [(line.label, *_cost(line, results), short(line.kid), short(line.mmd2)) for line in results.lines],
    )
    kinds = [f"  {kind}" for kind in interval_kinds(results)]
    return [
        *plain(scores),
        "  mean and improvement over base, positive is better; * trained on",
        *kinds,
        *(f"  {says}" for says in units(results)),
        "",
        *plain(cost),
    ]


def phases_grid(results: Results) -> Grid:
    """Return the iteration time by phase, and what it moves: memory, and FLOPs where the model says its own."""
    done = [line for line in results.lines if line.seconds]
    names = {name for line in done for name in line.seconds or {}} - {"total"}
    phases = [*(p for p in PHASES if p in names), *sorted(names - set(PHASES))]
    known = [line.flops for line in done if line.flops]
    prefix, unit = scale(known or [0.0])
    columns = [
        Column(title="method", numeric=False, code=True),
        *(Column(title=phase, group="median seconds an iteration") for phase in (*phases, "total")),
        Column(title="peak memory", note="GiB"),
        *([Column(title=f"model {prefix}FLOPs", note="an iteration")] if known else []),
    ]
    rows = []
    for line in done:
        seconds = [fixed((line.seconds or {}).get(phase), 3) for phase in (*phases, "total")]
        flops = [short(None if line.flops is None else line.flops / unit)] if known else []
        rows.append((line.label, *seconds, fixed((line.peak_memory_bytes or 0) / 2**30, 2), *flops))
    return grid(columns, rows)


def unfinished_grid(arms: Sequence[Arm]) -> Grid:
    """Return the cells that have no result yet, and how far they are."""
    cells = [(arm, cell) for arm in arms for cell in arm.unfinished]
    return grid(
        [
            Column(title="method", numeric=False, code=True),
            Column(title="seed"),
            Column(title="iterations done"),
            "folder",
        ],
        [
            (
                arm.label,
                str(cell.config["seed"]),
                f"{len(cell.rows)} of {plain_value(cell.config['shared'].get('iterations'))}",
                cell.folder.name,
            )
            for arm, cell in cells
        ],
    )


def failures_grid(arms: Sequence[Arm]) -> Grid:
    """Return what made leaves fail, as the rewards said it, with the number of leaves."""
    rows = []
    for arm in arms:
        for cell in arm.cells:
            failed = sum(row["failed"] for row in cell.rows)
            reasons = list(dict.fromkeys(reason for row in cell.rows for reason in row["failures"]))
            if failed:
                rows.append((arm.label, str(cell.config["seed"]), str(failed), "; ".join(reasons[:3]) or NONE))
    columns = [Column(title="method", numeric=False, code=True), Column(title="seed"), Column(title="failed leaves")]
    return grid([*columns, "reasons"], rows)


def warnings_grid(arms: Sequence[Arm]) -> Grid:
    """Return what the cells warned of: in how many iterations, and the first such warning."""
    rows = []
    for arm in arms:
        for cell in arm.cells:
            warned = [row["warnings"][0] for row in cell.rows if row["warnings"]]
            if warned:
                rows.append((arm.label, str(cell.config["seed"]), f"{len(warned)} of {len(cell.rows)}", warned[0]))
    columns = [Column(title="method", numeric=False, code=True), Column(title="seed"), Column(title="iterations")]
    return grid([*columns, "first warning"], rows)


def metrics_grid(results: Results) -> Grid:
    """Return what each metric's numbers mean."""
    return grid(
        [
            Column(title="metric", numeric=False, code=True),
            *("use", "unit", "range", "better", "model", "preprocessing", "revision", "source"),
        ],
        [
            (
                metric.name,
                _role(metric),
                metric.unit["unit"],
                reach(metric.unit["low"], metric.unit["high"]),
                "higher" if metric.unit["higher_is_better"] else "lower",
                metric.unit.get("model") or NONE,
                metric.unit.get("preprocessing") or NONE,
                metric.unit["revision"],
                metric.unit["reference"],
            )
            for metric in _ordered(results)
        ],
    )


def legend(results: Results) -> list[str]:
    """Return what a reader must know to read the main table."""
    return [*scores_legend(results), *cost_legend(results)]


def scores_legend(results: Results) -> list[str]:
    """Return what a reader must know of scores and drift."""
    return [
        "Scores are means over prompts, samples and seeds; under each, its improvement over the base model on the same "
        "prompts and noise. Improvements are positive where better.",
        "Trained on: the metric is the reward of training; its rise alone is no sign of quality. Held out: no arm was "
        "trained on it.",
        *(f"{says}." for says in units(results)),
        *(f"Intervals: {kind}." for kind in interval_kinds(results)),
        "Bold: the best improvement of a metric, only if it is one, every arm has two seeds or more, and its interval "
        "meets no other arm's.",
        *(_drift(drift) for drift in results.drifts[:1]),
    ]


def units(results: Results) -> list[str]:
    """Return what each metric's numbers are, a line each: unit, range, direction, revision; of a model's, how."""
    return [": ".join((metric.name, "; ".join(_told(metric.unit)))) for metric in _ordered(results)]


def _told(unit: Unit) -> list[str]:
    better = "higher" if unit["higher_is_better"] else "lower"
    how = [unit.get("model", ""), unit.get("preprocessing", "")]
    return [
        unit["unit"],
        reach(unit["low"], unit["high"]),
        f"{better} is better",
        *filter(None, how),
        f"revision {unit['revision']}",
    ]


def cost_legend(results: Results) -> list[str]:
    """Return what a reader must know of model calls and seconds."""
    return [
        "NFE are model evaluations a leaf, rollout and update apart. Paper: T where paths fan out once at most, else "
        "nodes ÷ leaves, root included. Edges: transitions. Calls: forwards that ran, shared ones once.",
        *_named_note(results),
        "s / iteration: median over iterations, the first dropped, and over seeds.",
    ]


def _named_note(results: Results) -> list[str]:
    if len(nfe_columns(results)) == len(NFE):
        return []
    return [
        "Calls of other policies: forwards without gradients, of policies whose velocities a loss compares with. Where "
        "one equals the live policy, as at the start, its velocity is the live one's and no call is made."
    ]


def interval_kinds(results: Results) -> list[str]:
    """Return the kinds of interval in the table, each with the arms it is of where there are several."""
    kinds: dict[str, dict[str, None]] = {}
    for line in results.lines:
        for score in line.scores.values():
            if score.gain is not None:
                kinds.setdefault(score.gain.kind, {})[line.label] = None
    return list(kinds) if len(kinds) == 1 else [f"{kind} ({', '.join(labels)})" for kind, labels in kinds.items()]


def results_csv(results: Results) -> str:
    """Return the main table with all digits, one row a line; empty where there is no number."""
    header = ["method", "is_base", "seeds", "unfinished", "failed_leaves", "leaves"]
    header += [f"nfe_{key.replace('.', '_')}" for key, _, _ in nfe_columns(results)]
    header += ["seconds_per_iteration", "flops_per_iteration", "peak_memory_bytes", "drift_kid", "drift_mmd2"]
    fields = ("mean", "improvement", "low", "high", "n", "interval", "trained_on", "unit", "higher_is_better")
    header += [f"{metric.name}_{name}" for metric in _ordered(results) for name in fields]
    return csv_text(header, ([_number(value) for value in _csv_row(line, results)] for line in results.lines))


def _csv_row(line: Line, results: Results) -> Iterable[object]:
    yield from (line.label, line.is_base, line.seeds, line.unfinished, line.failed, line.samples)
    yield from ((line.nfe or {}).get(key) for key, _, _ in nfe_columns(results))
    yield from ((line.seconds or {}).get("total"), line.flops, line.peak_memory_bytes, line.kid, line.mmd2)
    for metric in _ordered(results):
        score = line.scores.get(metric.name)
        gain = score.gain if score else None
        yield score.mean if score else None
        yield from (gain.mean, gain.low, gain.high, gain.n, gain.kind) if gain else (None,) * 5
        yield from (metric.trained, metric.unit["unit"], metric.unit["higher_is_better"])


def _number(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _ordered(results: Results) -> list[Metric]:
    return sorted(results.metrics, key=lambda metric: metric.trained, reverse=True)


def _role(metric: Metric) -> str:
    return "trained on" if metric.trained else "held out"


def _direction(metric: Metric) -> str:
    return f"{metric.unit['unit']} {'↑' if metric.unit['higher_is_better'] else '↓'}"


def _method(line: Line) -> tuple[Cell]:
    return (Cell(text=line.label),)


def _cost(line: Line, results: Results) -> tuple[str, ...]:
    calls = (trimmed((line.nfe or {}).get(key)) for key, _, _ in nfe_columns(results))
    return (*calls, short((line.seconds or {}).get("total")))


def _score_cells(line: Line, results: Results) -> list[Cell]:
    cells = []
    for metric in _ordered(results):
        score, digits = line.scores.get(metric.name), decimals(metric.unit["low"], metric.unit["high"])
        if score is None:
            cells.append(Cell(text=NONE))
        else:
            gain = uncertain(score.gain, digits) if score.gain else ""
            cells.append(Cell(text=fixed(score.mean, digits), sub=gain, strong=score.best))
    return cells


def _seeds(line: Line) -> Cell:
    waiting = f"{line.unfinished} unfinished" if line.unfinished else ""
    return Cell(text=NONE if line.is_base else str(line.seeds), sub=waiting)


def _rest(line: Line) -> tuple[Cell, ...]:
    return Cell(text=short(line.kid)), Cell(text=short(line.mmd2)), _seeds(line)


def _failed(line: Line) -> tuple[Cell]:
    return (Cell(text=f"{line.failed} of {line.samples}" if line.failed else ("0" if line.seeds else NONE)),)


def _drift(drift: Drift) -> str:
    if not drift["features"]:
        return "Drift was not measured: the suite names no features."
    return (
        f"Drift: distance of samples from {drift['n']} base samples of another noise, in image features of "
        f"{drift['features']}. KID: unbiased, kernel (x·y/d + 1)³. MMD²: unbiased, RBF kernel of bandwidth "
        f"{short(drift['bandwidth'])}, the median distance of base samples. The base model's own row is the floor: "
        "base against base."
    )


def flops_note(results: Results) -> str:
    """Return the convention of the FLOPs column, where there is one."""
    return f"Model FLOPs: {FLOPS}." if any(line.flops for line in results.lines) else ""


def time_legend(results: Results) -> list[str]:
    """Return what a reader must know of the seconds by phase."""
    note = flops_note(results)
    seconds = (
        "Median of each phase over iterations, the first dropped, and over seeds; the total is the iteration's own."
    )
    return [seconds, *([note] if note else [])]
