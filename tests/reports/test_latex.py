import re
import shutil
import subprocess

import pytest
from synthetic_suite import BRANCH, DANCE, MIX, SHARED, write_cell, write_suite

from reports.build import build
from reports.grid import Cell, Column, grid
from reports.latex import SPECIAL, SYMBOLS, Fragment, escape, files, latex, noted, tabular

PDFLATEX = shutil.which("pdflatex")
LABEL = "branch(splits=[0,4,8,12])"


def fragment(**changes):
    table = grid([Column(title="method", numeric=False), Column(title="KID", group="drift")], [("dance", "0.1")])
    return Fragment(**{"name": "some", "title": "Some numbers", "table": table, **changes})


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("eval_rewards 95 %", r"eval\_rewards 95 \%"),
        ("+0.1 ± 0.2", r"+0.1 $\pm$ 0.2"),
        ("−0.025", "$-$0.025"),
        ("MMD²", "MMD$^2$"),
        ("–", "--"),
        ("--set a", "-{}-set a"),
        ("{a$b&c#d~e^f}", r"\{a\$b\&c\#d\textasciitilde{}e\textasciicircum{}f\}"),
        ("<a|b>\\", r"\textless{}a\textbar{}b\textgreater{}\textbackslash{}"),
        ("Škoda é", "Škoda é"),
        ("犬", "[U+72AC]"),
        ("ж", "[U+0436]"),
    ],
)
def test_a_text_is_printed_as_it_is(text, tex):
    assert escape(text) == tex


def test_a_group_of_columns_has_a_heading_and_a_rule():
    lines = tabular(fragment().table).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert r" & \multicolumn{1}{c}{drift} \\" in lines
    assert r"\cmidrule(lr){2-2}" in lines
    assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"dance & 0.1 \\")


def test_the_best_is_bold_and_its_interval_stands_under_it():
    row = (Cell(text="0.7", sub="+0.2 ± 0.1", strong=True),)
    text = tabular(grid([Column(title="soft")], [row]))
    assert r"\begin{tabular}[t]{@{}r@{}}\textbf{0.7}\\{\scriptsize +0.2 $\pm$ 0.1}\end{tabular} \\[2pt]" in text


def test_the_caption_carries_the_legend():
    text = latex(fragment(legend=["Positive is better.", "n = 3."]))
    assert r"\caption[Some numbers]{Some numbers. Positive is better. n = 3.}" in text
    assert r"\label{tab:arbor-some}" in text


def test_words_move_under_the_table_each_once():
    table = grid(["method", "note", "source"], [("a", "long", "paper"), ("b", "–", "paper")])
    kept, notes = noted(table, ("note", "source"))
    assert [column.title for column in kept.columns] == ["method", "notes"]
    assert [[cell.text for cell in row] for row in kept.rows] == [["a", "a, b"], ["b", "b"]]
    assert notes == [("a", "long"), ("b", "paper")]


def test_marks_go_on_after_the_alphabet():
    table = grid(["method", "note"], [(str(k), f"note {k}") for k in range(30)])
    marks = [mark for mark, _ in noted(table, ("note",))[1]]
    assert marks[24:28] == ["y", "z", "aa", "ab"]
    assert len(set(marks)) == 30


def test_a_table_without_rows_has_no_fragment():
    empty = fragment(name="none", table=grid(["a"], []))
    assert set(files([fragment(), empty])) == {"some.tex", "tables.tex"}
    assert r"\input{none}" not in files([fragment(), empty])["tables.tex"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    suite = write_suite(tmp_path_factory.mktemp("runs") / "demo_suite")
    for seed in range(3):
        write_cell(suite, "dance", seed, gain=0.1 + 0.01 * seed, flops=2e9)
        write_cell(suite, LABEL, seed, algo="branch", algorithm=BRANCH, gain=0.2 + 0.01 * seed, flops=2e9)
        write_cell(suite, r"mix{}$&#_^~|\x ж", seed, algo="mix", algorithm=MIX, gain=0.01 * seed)
        paper = {**SHARED, "model": "FLUX.1-dev", "steps": 20}
        write_cell(suite, "dance(eta=0.3)", seed, gain=0.01 * seed, shared=paper, algorithm={**DANCE, "eta": 0.3})
    return build(suite, tmp_path_factory.mktemp("reports")).folder / "latex"


def test_the_report_has_a_fragment_a_table(folder):
    names = {"scores", "cost", "time", "configuration", "published", "nearest", "tables"}
    assert {path.stem for path in folder.iterdir()} == names
    assert r"\textbf{0.736}" in (folder / "scores.tex").read_text()
    assert (folder / "scores.tex").read_text().count(r"\textbf") == 2  # one a metric
    configuration = (folder / "configuration.tex").read_text()
    assert re.search(r"^method & .*kernel & eta", configuration, re.MULTILINE)


@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex on the path: that the fragments compile was not run")
def test_the_fragments_compile_and_fit_the_page(folder, tmp_path):
    every = " ".join(escape(character) for character in [*SPECIAL, *SYMBOLS])
    (tmp_path / "all.tex").write_text(f"\\documentclass{{article}}\\begin{{document}}{every}\\end{{document}}\n")
    for source in (folder / "tables.tex", tmp_path / "all.tex"):
        command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}"]
        done = subprocess.run([*command, source.name], cwd=source.parent, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout
        assert (tmp_path / f"{source.stem}.pdf").stat().st_size > 10_000
