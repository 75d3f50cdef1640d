"""The page in a browser: what a reader sees, can do, and never causes."""

import html
import re
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, REASON, Browser
from synthetic_suite import BASE, BRANCH, MIX, write_cell, write_images, write_measured_diversity, write_suite

from reports.build import build

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=REASON)
LONG = "branch(splits=[0,4,8,12],fusion=uniform)"
VIEWS = [(width, scheme) for width in (400, 1600) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    suite = write_suite(tmp_path_factory.mktemp("runs") / "a_suite_of_a_rather_long_name_0123456789")
    write_images(suite / BASE / "samples", range(6))
    for seed in range(3):
        for at, (label, algo, algorithm) in enumerate([("dance", "dance", MIX), (LONG, "branch", BRANCH)]):
            cell = write_cell(suite, label, seed, algo=algo, algorithm=algorithm, gain=0.1 + 0.01 * seed + 0.1 * at)
            for iteration in (2, 4) if at else (2, 3):
                write_images(cell / "samples" / f"{iteration:06d}", range(6), shade=40 * iteration + at)
    write_cell(suite, "<script>alert(1)</script>", 0, algo="mix", algorithm=MIX, done=False, failed=2)
    write_measured_diversity(suite, {"dance": "dance", LONG: "branch", "mix": "mix"})
    return build(suite, tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def page(browser):
    return browser.page()


SHOWN = """[...document.querySelectorAll('.images tbody tr')].map(row => [...row.querySelectorAll('td')].map(cell =>
    [...cell.querySelectorAll('img')].filter(i => i.checkVisibility()).map(i => i.src)))"""
"""Row by row and column by column, the images that are seen."""


def step(page, at):
    """Move the slider to a position, as a reader does."""
    page.value(f"{{ const s = document.querySelector('input'); s.value = {at}; s.dispatchEvent(new Event('input')) }}")


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_only_tables_scroll_sideways(report, page, width, scheme):
    page.open(report.page.as_uri(), width, scheme)
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.value("document.body.scrollWidth <= document.documentElement.clientWidth")
    wide = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('.scroll') &&
        e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + e.id)"""
    assert page.value(wide) == []
    tables = "[...document.querySelectorAll('table')].every(t => t.parentElement.matches('.scroll'))"
    assert page.value(tables)


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_no_letter_is_smaller_than_twelve_pixels(report, page, width, scheme):
    page.open(report.page.as_uri(), width, scheme)
    small = """{
      const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), small = [];
      for (let node; node = texts.nextNode();) {
        const e = node.parentElement;
        if (!node.data.trim() || e.closest('script, style') || !e.checkVisibility()) continue;
        const svg = e.closest('svg');
        const zoom = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
        const size = parseFloat(getComputedStyle(e).fontSize) * zoom;
        if (size < 11.99) small.push(`${size}: ${node.data.trim().slice(0, 40)}`);
      }
      small
    }"""
    assert page.value(small) == []


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_figures_and_images_have_a_size(report, page, width, scheme):
    page.open(report.page.as_uri(), width, scheme)
    sizes = page.value(
        "[...document.querySelectorAll('figure svg')].map(s => (r => [r.width, r.height])(s.getBoundingClientRect()))"
    )
    assert len(sizes) == 2 + 4 + 1 + 2  # improvements, curves, phases, embeddings
    assert all(w > 200 and h > 80 for w, h in sizes)
    images = page.value(
        "[...document.images].filter(i => i.checkVisibility()).map(i => [i.naturalWidth, i.width, i.alt])"
    )
    assert len(images) == 6 * 3
    assert all(natural == 32 and shown >= 80 and alt.startswith("prompt ") for natural, shown, alt in images)


def test_text_stands_out_from_the_ground_in_light_and_dark(report, page):
    colours = "['color', 'backgroundColor'].map(key => getComputedStyle(document.documentElement)[key])"
    grounds = {}
    for scheme in ("light", "dark"):
        page.open(report.page.as_uri(), 1600, scheme)
        ink, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in page.value(colours))
        assert abs(ink - ground) > 3 * 150
        grounds[scheme] = ground
        drawn = page.value("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert sum(map(int, re.findall(r"\d+", drawn)[:3])) == ink
    assert grounds["light"] > grounds["dark"]


def test_the_tables_hold_what_the_markdown_holds(report, page):
    page.open(report.page.as_uri(), 1600)
    cells = """[...document.querySelectorAll('#results table')][0].querySelectorAll('tbody tr')"""
    rows = page.value(f"[...{cells}].map(r => [...r.cells].map(c => c.innerText.replace(/\\n/g, ' ')))")
    lines = [line for line in (report.folder / "table.md").read_text().splitlines() if line.startswith("|")]
    kept = [[re.sub(r"[\\*`()]", "", cell).strip() for cell in line.split(" | ")] for line in lines[2 : 2 + len(rows)]]
    assert [[re.sub(r"[()*]", "", cell) for cell in row] for row in rows] == [
        [cell.removeprefix("| ").removesuffix(" |") for cell in row] for row in kept
    ]
    branch = next(row for row in rows if row[0] == LONG)
    assert "0.736 +0.210 ± 0.025" in branch
    assert page.value("[...document.querySelectorAll('#results b')].map(b => b.innerText)") == ["0.736", "0.631"]
    sections = page.value(
        "[...document.querySelectorAll('section')].filter(s => s.querySelector('table')).map(s => s.id)"
    )
    assert sections == [
        "results",
        "samples",
        "time",
        "diversity",
        "published",
        "configuration",
        "arms",
        "metrics",
        "environment",
    ]


def test_the_slider_changes_the_arms_images_and_leaves_the_bases(report, page):
    page.open(report.page.as_uri(), 1600)
    last = page.value(SHOWN)
    assert len(last) == 6
    assert all([len(cell) for cell in row] == [1, 1, 1] for row in last)
    step(page, 1)
    second = page.value(SHOWN)
    for before, after in zip(last, second, strict=True):
        assert after[0] == before[0]
        assert after[1] != before[1]
        assert after[2] != before[2]
    assert page.value("document.querySelector('output').innerText") == "2"
    assert page.value("document.querySelector('input').getAttribute('aria-valuetext')") == "iteration 2"


def test_before_training_every_arm_is_the_base(report, page):
    page.open(report.page.as_uri(), 1600)
    step(page, 0)
    assert all(row[1] == row[0] == row[2] for row in page.value(SHOWN))


def test_an_arm_that_has_ended_stays_at_its_last_checkpoint_and_says_so(report, page):
    page.open(report.page.as_uri(), 1600)
    heads = "[...document.querySelectorAll('.images .at')].map(e => e.innerText)"
    seen = {}
    for at in range(4):
        step(page, at)
        seen[at] = page.value(heads)
    assert seen == {
        0: ["iteration 0", "iteration 0"],
        1: ["iteration 2", "iteration 2"],
        2: ["iteration 3", "iteration 2"],
        3: ["iteration 3", "iteration 4"],
    }


def test_the_slider_is_named_and_moves_by_keyboard(report, page):
    page.open(report.page.as_uri(), 1600)
    assert page.value("document.querySelector('input').labels[0].innerText") == "Iteration 4"
    before = page.value(SHOWN)
    page.value("document.querySelector('input').focus()")
    page.press("ArrowLeft", 37)
    assert page.value("document.querySelector('output').innerText") == "3"
    assert page.value(SHOWN) != before
    page.press("Home", 36)
    assert page.value("document.querySelector('output').innerText") == "0"


def test_without_scripts_the_finished_images_show_and_no_slider(report, page):
    page.open(report.page.as_uri(), 1600)
    finished = page.value(SHOWN)
    page.open(report.page.as_uri(), 1600, scripts=False)
    assert page.value(SHOWN) == finished
    assert page.value("document.querySelector('.slider').checkVisibility()") is False


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_says_nothing_and_asks_for_nothing(report, page, width, scheme):
    page.open(report.page.as_uri(), width, scheme)
    step(page, 0)
    page.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.value("window.scrollTo(0, document.body.scrollHeight)")
    page.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.heard("Runtime.consoleAPICalled") == []
    assert page.heard("Runtime.exceptionThrown") == []
    assert page.heard("Log.entryAdded") == []
    asked = [event["request"]["url"] for event in page.heard("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [report.page.as_uri()]


def test_a_script_that_is_not_the_pages_own_does_not_run(report, page, tmp_path):
    other = tmp_path / "other.html"
    other.write_text(report.page.read_text().replace("</body>", "<script>document.title = 'mine'</script></body>"))
    page.open(other.as_uri(), 1600)
    assert page.value("document.title") != "mine"
    assert any("Content Security Policy" in e["entry"]["text"] for e in page.heard("Log.entryAdded"))


class Scripts(HTMLParser):
    count = 0

    def handle_starttag(self, tag, attrs):
        self.count += tag == "script"


def test_names_are_text_beside_a_script(report):
    text, parser = report.page.read_text(), Scripts()
    parser.feed(text)
    assert parser.count == 1
    assert html.escape("<script>alert(1)</script>") in text
