import csv
import html
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_suite import BRANCH, MIX, write_cell, write_suite

from reports.build import Report, build

ROOT = Path(__file__).parents[2]
LABEL = "branch(splits=[0,4,8,12])"


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    folder = write_suite(tmp_path_factory.mktemp("runs") / "demo")
    for seed in range(3):
        write_cell(folder, "dance", seed, gain=0.1 + 0.01 * seed, flops=2e9, failed=seed)
        write_cell(folder, LABEL, seed, algo="branch", algorithm=BRANCH, gain=0.2 + 0.01 * seed, flops=2e9)
    write_cell(folder, "mix", 0, algo="mix", algorithm=MIX, done=False, rewards=[0.5])
    write_cell(folder, "<script>alert(1)</script>|$x", 0, algo="mix", algorithm=MIX, done=False, rewards=[])
    return folder


@pytest.fixture(scope="module")
def report(suite, tmp_path_factory) -> Report:
    return build(suite, tmp_path_factory.mktemp("reports"))


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the identifiers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_report_lies_under_the_suites_name(report):
    assert report.folder.name == "demo"
    assert report.page == report.folder / "index.html"
    names = {path.relative_to(report.folder).as_posix() for path in report.files}
    assert {"table.md", "table.csv", "config_diff.md", "config_diff.csv", "index.html"} <= names
    assert {f"figures/reward-{x}.svg" for x in ("iterations", "rollout-calls", "update-calls", "seconds")} <= names
    assert {"figures/improvement-soft.svg", "figures/improvement-strict.svg", "figures/phases.svg"} <= names
    assert all(path.stat().st_size for path in report.files)
    assert {path for path in report.folder.rglob("*") if path.is_file()} == set(report.files)


def test_the_csv_holds_all_digits(report):
    with (report.folder / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert next(iter(rows)) == "base model"
    row = rows[LABEL]
    assert float(row["soft_improvement"]) == pytest.approx(0.21)
    half = 4.302652729911275 * 0.01 / 3**0.5
    assert float(row["soft_high"]) - float(row["soft_improvement"]) == pytest.approx(half)
    assert (row["seeds"], row["soft_n"], row["soft_trained_on"], row["strict_trained_on"]) == (
        "3",
        "3",
        "True",
        "False",
    )
    assert row["nfe_rollout_calls"] == "12.6875"
    assert rows["dance"]["failed_leaves"] == "12"
    assert (rows["mix"]["unfinished"], rows["mix"]["soft_mean"]) == ("1", "")


def test_the_markdown_table_marks_the_winner_and_lists_the_unfinished(report):
    lines = (report.folder / "table.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{LABEL}` | 13.6875"))
    assert "**0.736** (+0.210 ± 0.025)" in row
    (dance,) = (line for line in lines if line.startswith("| `dance` | 13.6875"))
    assert "**" not in dance
    assert any(line.startswith("| `mix` |") and "1 of 4" in line for line in lines)


def test_the_terminal_gets_the_table(report):
    text = "\n".join(report.lines)
    assert "0.736 (+0.210 ± 0.025)" in text
    assert "95 % t interval over 3 seeds, paired" in text
    assert max(map(len, report.lines)) <= 120


def test_the_page_loads_nothing(report):
    text = report.page.read_text()
    tags = Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "embed", "audio", "video", "img", "base"}
    links = [value for _, attrs in tags for key, value in attrs.items() if key in {"src", "href", "xlink:href"}]
    assert all(link is not None and link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in tags)


def test_names_are_text_and_never_markup(report):
    text = report.page.read_text()
    assert "<script" not in text
    assert html.escape("<script>alert(1)</script>|$x") in text


def test_identifiers_are_unique_and_references_resolve(report):
    text = report.page.read_text()
    ids = Counter(attrs["id"] for _, attrs in Tags(text).tags if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert used
    assert {a or b for a, b in used} <= set(ids)


def test_figures_follow_the_theme_on_the_page_and_stand_alone_as_files(report):
    from reports.figures import ARM_COLOURS, INK

    page, figure = report.page.read_text(), (report.folder / "figures/reward-iterations.svg").read_text()
    drawn = page[page.index("<svg") :]
    assert INK not in drawn
    assert ARM_COLOURS[1] not in drawn
    assert "var(--arm1)" in drawn
    assert INK in figure
    assert ARM_COLOURS[1] in figure


def test_every_section_is_there(report):
    text = report.page.read_text()
    for part in (
        "Results",
        "Unfinished",
        "Failed leaves",
        "Warnings",
        "Nearest published",
        "Effective configurations",
        "Metrics",
    ):
        assert re.search(rf"<h[23]>{part}</h[23]>", text), part
    assert "model FLOPs of one call × (all calls + 2 × update calls)" in text
    assert "context for our numbers" in text
    assert "packages.torch" in text
    assert "no face found" in text


def test_the_same_records_make_the_same_report(suite, report, tmp_path):
    again = build(suite, tmp_path)
    for old, new in zip(report.files, again.files, strict=True):
        assert old.read_bytes() == new.read_bytes(), old.name


def test_a_suite_that_has_only_begun_has_a_report(tmp_path):
    empty = build(write_suite(tmp_path / "runs"), tmp_path / "reports")
    assert "base model" in empty.page.read_text()
    assert any(line.startswith("base model") for line in empty.lines)


def test_what_is_no_suite_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no suite\.yaml"):
        build(tmp_path, tmp_path / "out")


def test_reports_need_no_torch(suite, tmp_path):
    program = (
        "import sys; from pathlib import Path; from reports.build import build;"
        f"build(Path({str(suite)!r}), Path({str(tmp_path)!r}));"
        "print(sorted({'torch', 'diffusers', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
