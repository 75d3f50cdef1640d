"""Tables as LaTeX fragments for papers to input, and a small document that inputs them all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from reports.grid import Cell, Column, Grid, grid
from reports.numbers import NONE

APART = "\u200b"
"""Stands between two hyphens, which would join to a dash."""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"''",
    "–": "--",
    "—": "---",
    APART: "{}",
    "…": r"\ldots{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
}
SYMBOLS = {
    "−": "-",
    "±": r"\pm",
    "²": "^2",
    "³": "^3",
    "×": r"\times",
    "·": r"\cdot",
    "÷": r"\div",
    "√": r"\surd",
    "≤": r"\le",
    "≥": r"\ge",
    "≠": r"\ne",
    "≈": r"\approx",
    "→": r"\rightarrow",
    "↑": r"\uparrow",
    "↓": r"\downarrow",
    "∞": r"\infty",
    "Σ": r"\Sigma",
    "Δ": r"\Delta",
    "σ": r"\sigma",
    "τ": r"\tau",
    "η": r"\eta",
    "β": r"\beta",
    "ε": r"\varepsilon",
    "µ": r"\mu",
    "μ": r"\mu",
}
"""What is set as mathematics."""
WIDE = 34
"""Letters from which a column of words is broken into lines."""
PREAMBLE = r"""% Every fragment needs \usepackage{booktabs,graphicx}, and stands in a paper as \input{scores}.
\documentclass[10pt]{article}
\usepackage[a4paper,landscape,margin=18mm]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A table of the report, and what a reader must know to read it."""

    name: str
    """Of its file, without suffix, and of its label."""
    title: str
    table: Grid
    legend: Sequence[str] = ()
    notes: Sequence[str] = ()
    """Titles of the columns whose words go under the table, so that it fits a page."""


def files(fragments: Sequence[Fragment]) -> Mapping[str, str]:
    """Return the fragments that have rows by file name, and tables.tex, the document that inputs them."""
    full = [fragment for fragment in fragments if fragment.table.rows]
    inputs = "\n".join(rf"\input{{{fragment.name}}}" for fragment in full)
    document = f"{PREAMBLE}{inputs or 'No table has a row yet.'}\n\\end{{document}}\n"
    return {**{f"{fragment.name}.tex": latex(fragment) for fragment in full}, "tables.tex": document}


def latex(fragment: Fragment) -> str:
    """Return a table as a float of its natural width, made smaller where that is wider than the text."""
    table, notes = noted(fragment.table, fragment.notes)
    caption = " ".join(escape(text) for text in (f"{fragment.title}.", *fragment.legend))
    under = "; ".join(rf"\textsuperscript{{{mark}}}~{escape(text)}" for mark, text in notes)
    parts = [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption[{escape(fragment.title)}]{{{caption}}}",
        rf"\label{{tab:arbor-{fragment.name}}}",
        r"\par\medskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        tabular(table) + "}",
        *([rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {under}}}"] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def tabular(table: Grid) -> str:
    """Return a table without caption: groups with rules of their own, headings, rows."""
    layout = "".join(_alignment(table, at) for at in range(len(table.columns)))
    heads = [_stacked(escape(c.title), escape(c.note), right=c.numeric) for c in table.columns]
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", *_groups(table), _row(heads), r"\midrule"]
    for row in table.rows:
        apart = "[2pt]" if any(cell.sub for cell in row) else ""
        lines.append(_row(_cell(cell, c) for cell, c in zip(row, table.columns, strict=True)) + apart)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def noted(table: Grid, titles: Sequence[str]) -> tuple[Grid, list[tuple[str, str]]]:
    """Return the table with its columns of these titles as one of marks, and each distinct text with its mark."""
    moved = [at for at, column in enumerate(table.columns) if column.title in titles]
    if not moved:
        return table, []
    kept = [at for at in range(len(table.columns)) if at not in moved]
    texts = dict.fromkeys(row[at].text for row in table.rows for at in moved if row[at].text not in ("", NONE))
    mark = {text: _mark(number) for number, text in enumerate(texts)}
    rows = [
        (*(row[at] for at in kept), Cell(text=", ".join(mark[row[at].text] for at in moved if row[at].text in mark)))
        for row in table.rows
    ]
    columns = [*(table.columns[at] for at in kept), Column(title="notes", numeric=False)]
    return grid(columns, rows), [(mark[text], text) for text in texts]


def escape(text: str) -> str:
    """Return a text that LaTeX prints as it is; a character that its fonts lack is printed as its code point."""
    return "".join(map(_character, re.sub("-(?=-)", f"-{APART}", " ".join(text.split()))))


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if character in SYMBOLS:
        return f"${SYMBOLS[character]}$"
    if character.isascii():
        return character
    letter = unicodedata.normalize("NFD", character)
    known = letter[0].isascii() and ord(character) < 0x180 and len(letter) == 2
    return character if known else f"[U+{ord(character):04X}]"


def _alignment(table: Grid, at: int) -> str:
    """Return a column's letter; one of long words breaks its lines."""
    column = table.columns[at]
    if column.numeric:
        return "r"
    longest = max((len(row[at].text) for row in table.rows), default=0)
    return r"p{0.25\linewidth}" if longest > WIDE and not column.code else "l"


def _groups(table: Grid) -> list[str]:
    """Return the line of headings over columns, and the rules under them."""
    if not table.spans:
        return []
    cells, rules, first = [], [], 1
    for title, width in table.spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(title)}}}" if title else "")
        rules += [rf"\cmidrule(lr){{{first}-{first + width - 1}}}"] if title else []
        first += width
    return [_row(cells), "".join(rules)]


def _cell(cell: Cell, column: Column) -> str:
    text = escape(cell.text)
    text = rf"\texttt{{{text}}}" if column.code and text else text
    text = rf"\textbf{{{text}}}" if cell.strong and text else text
    return _stacked(text, escape(cell.sub), right=column.numeric)


def _stacked(text: str, sub: str, *, right: bool) -> str:
    """Return a text with small print under it."""
    if not sub:
        return text
    return rf"\begin{{tabular}}[t]{{@{{}}{'r' if right else 'l'}@{{}}}}{text}\\{{\scriptsize {sub}}}\end{{tabular}}"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _mark(number: int) -> str:
    return (ascii_lowercase[number // 26 - 1] if number >= 26 else "") + ascii_lowercase[number % 26]
