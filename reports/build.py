"""Records of a suite -> its report: tables as Markdown and CSV, figures as SVG, and one offline page of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import SuiteRecord, read_suite, write_text
from reports import diversity, latex, tables
from reports.arms import Arm, arms, trained_on
from reports.configuration import (
    cards,
    difference_csv,
    difference_grid,
    difference_markdown,
    environment_grid,
    prompt_lines,
    shared_grid,
)
from reports.curves import curves
from reports.figures import Drawing, draw
from reports.gallery import SIDE, galleries
from reports.grid import escape, markdown, transposed
from reports.latex import Fragment
from reports.numbers import plain_value
from reports.page import html
from reports.published import DIVERSITY_CONTEXT, placed, published_grid
from reports.results import Results, results

CONTEXT = (
    "Published scores are of FLUX.1-dev, of the papers' prompts, hardware and preprocessing: context for our numbers, "
    "not rows to compare them with, unless a suite runs that model on those prompts."
)


KINDS = ("improvement", "reward", "phases", "embedding")
"""How the names of figures begin, section by section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written."""

    folder: Path
    page: Path
    """index.html."""
    files: tuple[Path, ...]
    """All files, the page included."""
    lines: tuple[str, ...]
    """The table as a terminal shows it."""


def build(suite_folder: Path, out: Path) -> Report:
    """Write a suite's report to `out/<suite>/`, from its records alone.

    Args:
        suite_folder: runs/<suite>.
        out: folder of all reports.

    Raises:
        ValueError: if the folder is not a suite's, or its records contradict each other.
    """
    record = read_suite(suite_folder)
    found = arms(record)
    numbers = results(record, found)
    drawings = _drawings(record, found, numbers)
    folder = out / suite_folder.resolve().name
    texts = _texts(record, found, numbers, drawings)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    return Report(
        folder=folder,
        page=folder / "index.html",
        files=tuple(folder / name for name in texts),
        lines=(*tables.terminal(numbers), *diversity.terminal(record.diversity)),
    )


def _drawings(record: SuiteRecord, found: Sequence[Arm], numbers: Results) -> list[Drawing]:
    """Return the figures; an arm has one colour in all of them, also where only its rollouts were measured."""
    projected = diversity.projection(record.diversity)
    measured = [label for label, _ in projected.arms] if projected else []
    order = dict.fromkeys([*(arm.label for arm in found), *measured])
    return draw(numbers, curves(found), projected, list(order))


def _texts(record: SuiteRecord, found: Sequence[Arm], numbers: Results, drawings: Sequence[Drawing]) -> dict[str, str]:
    """Return the content of each file of the report."""
    content = _content(record, found, numbers, drawings)
    return {
        "table.md": _table_markdown(content),
        "table.csv": tables.results_csv(numbers),
        "config_diff.md": difference_markdown(found),
        "config_diff.csv": difference_csv(found),
        **{f"latex/{name}": text for name, text in latex.files(_fragments(content, numbers)).items()},
        **({"diversity.csv": diversity.diversity_csv(record.diversity)} if record.diversity else {}),
        **{f"figures/{drawing.name}.svg": drawing.svg for drawing in drawings},
        "index.html": html(content),
    }


def _content(
    record: SuiteRecord, found: Sequence[Arm], numbers: Results, drawings: Sequence[Drawing]
) -> dict[str, Any]:
    """Return what the page shows, section by section."""
    shared = record.suite["shared"]
    published, ours = placed(found, shared), {line.label: line for line in numbers.lines}
    by_kind = {kind: [d for d in drawings if d.name.startswith(kind)] for kind in KINDS}
    return {
        "name": record.suite["name"],
        "facts": _facts(record, found),
        "main": tables.scores_grid(numbers),
        "legend": tables.legend(numbers),
        "unfinished": tables.unfinished_grid(found),
        "failures": tables.failures_grid(found),
        "warnings": tables.warnings_grid(found),
        "improvements": by_kind["improvement"],
        "galleries": galleries(record, found),
        "gallery_side": SIDE,
        "curves": by_kind["reward"],
        "phases": by_kind["phases"],
        "phases_table": tables.phases_grid(numbers),
        "flops_note": tables.flops_note(numbers),
        "diversity": diversity.diversity_grid(record.diversity),
        "diversity_legend": diversity.diversity_legend(record.diversity),
        "diversity_published": diversity.published_diversity_grid(record.diversity),
        "diversity_context": DIVERSITY_CONTEXT,
        "embeddings": by_kind["embedding"],
        "context": CONTEXT,
        "published": published_grid(published, ours, nearest=False),
        "nearest": published_grid(published, ours, nearest=True),
        "difference": difference_grid(found),
        "shared": shared_grid(shared),
        "prompts": prompt_lines(record),
        "cards": cards(found),
        "metrics": tables.metrics_grid(numbers),
        "environment": environment_grid(found),
    }


def _fragments(content: Mapping[str, Any], numbers: Results) -> list[Fragment]:
    """Return the tables that papers show, as LaTeX has them: the main table in two, each of a page's width."""
    scores, cost = tables.halves(numbers)
    aside = ("differs in", "note", "source")
    return [
        Fragment(name="scores", title="Results", table=scores, legend=tables.scores_legend(numbers)),
        Fragment(name="cost", title="Cost", table=cost, legend=tables.cost_legend(numbers)),
        Fragment(
            name="time", title="Iteration time", table=content["phases_table"], legend=tables.time_legend(numbers)
        ),
        Fragment(
            name="diversity",
            title="Diversity of rollouts",
            table=content["diversity"],
            legend=content["diversity_legend"],
        ),
        Fragment(
            name="configuration",
            title="Effective configurations",
            table=transposed(content["difference"]),
            legend=["Shared keys that the arms did not run alike; none where an arm has no such setting."],
        ),
        Fragment(
            name="published",
            title="Published values of the same settings",
            table=content["published"],
            legend=[content["context"]],
            notes=aside,
        ),
        Fragment(
            name="nearest",
            title="Nearest published values",
            table=content["nearest"],
            legend=[content["context"]],
            notes=aside,
        ),
    ]


def _facts(record: SuiteRecord, found: Sequence[Arm]) -> list[tuple[str, str]]:
    """Return what the suite is, in a few pairs of words."""
    shared: Mapping[str, Any] = record.suite["shared"]
    seeds = sorted({cell.config["seed"] for arm in found for cell in arm.cells})
    rewards = ", ".join(trained_on(shared))
    return [
        ("model", plain_value(shared.get("model"))),
        ("trained on", rewards),
        ("preset", plain_value(record.suite.get("preset"))),
        ("iterations", plain_value(shared.get("iterations"))),
        ("prompts × images an iteration", " × ".join(_each(shared, "prompts_per_iteration", "group_size"))),
        ("denoising steps", plain_value(shared.get("steps"))),
        ("seeds", ", ".join(map(str, seeds)) or "none yet"),
        ("cells finished", f"{sum(len(arm.done) for arm in found)} of {sum(len(arm.cells) for arm in found)}"),
        ("shared configuration", plain_value(record.suite.get("shared_hash"))),
    ]


def _each(values: Mapping[str, Any], *keys: str) -> list[str]:
    return [plain_value(values.get(key)) for key in keys]


def _table_markdown(content: Mapping[str, Any]) -> str:
    """Return table.md: the main table, its legend, and published values."""
    parts = [f"# {escape(content['name'])}\n", markdown(content["main"])]
    parts += [*(f"- {escape(line)}" for line in content["legend"]), ""]
    for title, key in (
        ("Unfinished", "unfinished"),
        ("Failed leaves", "failures"),
        ("Warnings", "warnings"),
        ("Iteration time", "phases_table"),
        ("Metrics", "metrics"),
        ("Diversity of rollouts", "diversity"),
        ("Published, of the same settings", "published"),
        ("Nearest published", "nearest"),
    ):
        if content[key].rows:
            parts += [f"## {title}\n", markdown(content[key])]
    return "\n".join([*parts, escape(content["context"]), ""])
