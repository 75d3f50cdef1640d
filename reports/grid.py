"""A table of text, once laid out, written as Markdown, CSV, plain text or (by the page's template) HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's heading."""

    title: str
    group: str = ""
    """Heading over neighbouring columns of the same group."""
    note: str = ""
    """Small print under the title."""
    numeric: bool = True
    """Aligned to the right."""
    code: bool = False
    """Whether cells are names as typed, such as branch(splits=[0,4])."""

    @property
    def full(self) -> str:
        """Return the heading where there is only one line for it."""
        return " ".join(part for part in (self.group, self.title, f"({self.note})" if self.note else "") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What stands in a column."""

    text: str
    sub: str = ""
    """Small print under the text."""
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of text."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Return the groups over the columns, each with the number of columns it spans; empty without groups."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(group for group, _ in spans) else []


def grid(columns: Sequence[str | Column], rows: Iterable[Sequence[str | Cell]]) -> Grid:
    """Return a table of texts; a heading given as text is one of words, not numbers."""
    return Grid(
        columns=tuple(Column(title=c, numeric=False) if isinstance(c, str) else c for c in columns),
        rows=tuple(tuple(Cell(text=c) if isinstance(c, str) else c for c in row) for row in rows),
    )


def select(table: Grid, columns: Sequence[int]) -> Grid:
    """Return the table's columns of these numbers, in this order."""
    return Grid(
        columns=tuple(table.columns[at] for at in columns),
        rows=tuple(tuple(row[at] for at in columns) for row in table.rows),
    )


def transposed(table: Grid) -> Grid:
    """Return a table of one column a method as one of a row a method, its keys the headings."""
    keys = [Column(title=row[0].text, numeric=False) for row in table.rows]
    others = enumerate(table.columns[1:], 1)
    rows = [(Cell(text=column.title), *(row[at] for row in table.rows)) for at, column in others]
    return grid([Column(title="method", numeric=False, code=True), *keys], rows if keys else [])


def markdown(table: Grid) -> str:
    """Return a GitHub-flavoured Markdown table."""
    lines = [
        _row(escape(column.full) for column in table.columns),
        _row("---:" if column.numeric else ":---" for column in table.columns),
    ]
    lines += [
        _row(_markdown_cell(cell, column) for cell, column in zip(row, table.columns, strict=True))
        for row in table.rows
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return a text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return a text as Markdown code; a bar is escaped for tables, where code does not protect it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text.replace('|', chr(92) + '|')}{pad}{fence}" if text else ""


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return comma-separated values, RFC 4180, with LF line ends; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def plain(table: Grid) -> list[str]:
    """Return the table as lines of aligned text for a terminal."""
    heads = [(column.group, column.title) for column in table.columns]
    body = [[f"{cell.text} ({cell.sub})" if cell.sub else cell.text for cell in row] for row in table.rows]
    groups = [group if index == 0 or heads[index - 1][0] != group else "" for index, (group, _) in enumerate(heads)]
    texts = ([groups] if table.spans else []) + [[title for _, title in heads], *body]
    widths = [max(len(line[index]) for line in texts) for index in range(len(heads))]
    lines = [_aligned(line, widths, table.columns) for line in texts]
    lines.insert(len(texts) - len(body), "  ".join("-" * width for width in widths))
    return lines


def _aligned(texts: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    parts = zip(texts, widths, columns, strict=True)
    return "  ".join(f"{text:>{width}}" if c.numeric else f"{text:<{width}}" for text, width, c in parts).rstrip()


def _markdown_cell(cell: Cell, column: Column) -> str:
    text = code(cell.text) if column.code else escape(cell.text)
    text = f"**{text}**" if cell.strong and text else text
    return f"{text} ({escape(cell.sub)})" if cell.sub else text


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
