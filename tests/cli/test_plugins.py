"""A plugin is one file: an algorithm, a reward or a model comes with it, under its own name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from algorithms import dance
from bench.registry import IN_TREE, InputError, load

ONE = "from algorithms.dance import Dance\nARMS = {{'{0}': Dance()}}\n"


def test_files_of_one_name_in_two_folders_are_two_plugins(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "arm.py").write_text(ONE.format(name))

    found = load("algorithms", [tmp_path / "first" / "arm.py", tmp_path / "second" / "arm.py"])

    assert {"first", "second"} <= set(found.values)


def test_a_file_named_twice_is_one_plugin(tmp_path):
    (tmp_path / "arm.py").write_text(ONE.format("mine"))

    (tmp_path / "folder").mkdir()

    assert "mine" in load("algorithms", [tmp_path / "arm.py"] * 2).values
    assert "mine" in load("algorithms", [tmp_path / "arm.py", tmp_path / "folder" / ".." / "arm.py"]).values


def test_a_file_may_hold_plugins_of_several_kinds_and_runs_once(tmp_path):
    (tmp_path / "both.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.log').open('a').write('loaded')\n"
        "from rewards.control import Random\nfrom algorithms.mix import Mix\n"
        "ARMS = {'my-mix': Mix()}\nREWARDS = {'my-random': Random}\n"
    )

    assert "my-mix" in load("algorithms", [tmp_path / "both.py"]).values
    assert "my-random" in load("rewards", [tmp_path / "both.py"]).values
    assert (tmp_path / "both.log").read_text() == "loaded"


def test_a_file_that_raised_can_be_mended(tmp_path):
    plugin = tmp_path / "arm.py"
    plugin.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(InputError, match="not yet"):
        load("algorithms", [plugin])
    plugin.write_text(ONE.format("mended"))

    assert "mended" in load("algorithms", [plugin]).values


def test_a_file_that_exits_is_wrong_input(tmp_path, call):
    (tmp_path / "arm.py").write_text("import sys\nsys.exit('no licence')\n")

    answer = call(["list", "--plugin", "arm.py"])

    assert (answer.status, answer.out) == (2, "")
    place = f"({tmp_path / 'arm.py'}:2)"
    assert answer.err == f"bench: --plugin arm.py does not load: SystemExit: no licence {place}\n"


def test_what_a_file_raises_is_told_whole_with_its_place(tmp_path, call):
    plugin = tmp_path / "arm.py"
    plugin.write_text("x = (\n")
    assert f"SyntaxError: '(' was never closed ({plugin.resolve()}:1)" in call(["list", "--plugin", str(plugin)]).err
    plugin.write_text("\nraise RuntimeError('boom\\nsecond line')\n")
    assert f"RuntimeError: boom second line ({plugin}:2)" in call(["list", "--plugin", str(plugin)]).err


@pytest.mark.parametrize("name", ["", "all", "flow ", "my rank, (x)"])
def test_an_arm_that_could_not_be_named_is_refused(tmp_path, call, name):
    (tmp_path / "arm.py").write_text(f"from algorithms.dance import Dance\nARMS = {{{name!r}: Dance()}}\n")
    assert "for a name; letters, digits and hyphens are wanted" in call(["list", "--plugin", "arm.py"]).err


def test_a_file_that_was_interrupted_is_loaded_anew(tmp_path, call):
    plugin = tmp_path / "arm.py"
    plugin.write_text("raise KeyboardInterrupt\n")
    assert call(["list", "--plugin", "arm.py"]).status == 130
    plugin.write_text(ONE.format("awake"))

    assert "awake" in load("algorithms", [plugin]).values


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("theirs", {"theirs_arm": text}, kind="rewards")` is a distribution that names modules as entry points.

    They are found where real ones are, in the metadata of a folder on the path.
    """
    site, before = tmp_path / "site", set(sys.modules)
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def installing(name: str, modules: Mapping[str, str], kind: str = "algorithms", *, named: str = "") -> None:
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        points = [f"{module.replace('_', '-')} = {named or module}" for module in modules]
        (info / "entry_points.txt").write_text("\n".join([f"[bench.{kind}]", *points, ""]))
        for module, text in modules.items():
            (site / f"{module}.py").write_text(text)

    yield installing
    for module in set(sys.modules) - before:
        if Path(getattr(sys.modules[module], "__file__", None) or "/").is_relative_to(site):
            del sys.modules[module]


def test_an_installed_module_brings_its_plugins_and_says_where_they_are_from(install):
    install("theirs", {"theirs_arm": ONE.format("their-dance")})

    found = load("algorithms")

    assert "their-dance" in found.values
    assert found.origins["their-dance"] == "entry point 'theirs-arm' of distribution 'theirs' (module theirs_arm)"
    assert found.broken == {}


OF_NO_PAPER = """
from dataclasses import dataclass
@dataclass
class Mine:
    info = 'me'
ARMS = {'mine': Mine()}
"""
RAISES_WHEN_READ = """
from algorithms.dance import Dance
class Moody(Dance):
    @property
    def info(self): raise LookupError('not now')
ARMS = {'moody': Moody()}
"""
BROKEN = {
    "raises": ("algorithms", "import no_such_module", "No module named 'no_such_module'"),
    "exits": ("algorithms", "raise SystemExit(3)", "SystemExit: 3"),
    "exits-in-its-own-way": ("algorithms", "raise BaseException('bye')", "BaseException: bye"),
    "is-no-python": ("algorithms", "def (:", "SyntaxError"),
    "has-no-mapping": ("algorithms", "ALGORITHMS = {}", "it has no ARMS"),
    "has-a-list": ("algorithms", "ARMS = ['dance']", "ARMS must be a mapping"),
    "names-by-number": ("algorithms", "ARMS = {7: 7}", "ARMS has 7 for a name"),
    "holds-no-algorithm": ("algorithms", "ARMS = {'seven': 7}", "'seven' is no algorithm; a dataclass's instance"),
    "holds-a-class": ("algorithms", ONE.format("d").replace("()", ""), "'d' is no algorithm; a dataclass's instance"),
    "holds-another-dataclass": ("algorithms", OF_NO_PAPER, "'mine' is no algorithm; a dataclass's instance"),
    "knows-nothing-of-itself": ("rewards", "class R: info = {}\nREWARDS = {'r': R}", "'r' is no reward; a class"),
    "raises-when-it-is-read": ("algorithms", RAISES_WHEN_READ, "LookupError: not now"),
    "holds-no-model": ("models", "MODELS = {'seven': 7}", "'seven' is no model"),
}


@pytest.mark.parametrize(("kind", "text", "why"), BROKEN.values(), ids=BROKEN)
def test_an_installed_module_that_cannot_be_used_hides_no_other(install, call, kind, text, why):
    install("broken", {"broken_module": text}, kind)
    install("whole", {"whole_module": ONE.format("whole-dance")})
    where = "entry point 'broken-module' of distribution 'broken' (module broken_module)"

    assert {"dance", "mix", "branch", "whole-dance"} <= set(load("algorithms").values)
    assert why in load(kind).broken[where]
    listed = call(["list"])
    assert (listed.status, listed.err.count("\n")) == (0, 1)
    assert listed.err.startswith(f"bench: {where} does not load: ")
    assert "whole-dance" in listed.out
    with pytest.raises(InputError, match="broken_module"):
        load(kind).get("theirs")


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "ARMS = {'seven': 7}"])
def test_an_arm_that_exists_runs_beside_a_broken_one(install, call, text):
    install("broken", {"broken_module": text})

    answer = call(["run", "--algos", "dance", "--preset", "smoke", "--dry-run"])

    assert (answer.status, answer.err) == (0, "")
    assert "\ndance " in answer.out


def test_an_interrupt_ends_the_program_whoever_is_loaded(install, call):
    install("slow", {"slow_module": "raise KeyboardInterrupt"})

    assert call(["list"]).status == 130


def test_an_entry_point_that_names_more_than_a_module_says_so(install):
    install("broken", {"broken_module": ONE.format("d")}, named="broken_module:ARMS")

    (why,) = load("algorithms").broken.values()
    assert why == "an entry point names a module: 'broken_module' alone"


def test_a_module_of_the_tree_that_cannot_be_used_hides_no_other(tmp_path, monkeypatch, call):
    tree = tmp_path / "tree_of_arms"
    tree.mkdir()
    (tree / "__init__.py").touch()
    (tree / "raises.py").write_text("raise RuntimeError('not yet')\n")
    (tree / "seven.py").write_text("ARMS = {'seven': 7}\n")
    (tree / "whole.py").write_text(ONE.format("whole-dance"))
    (tree / "without.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(IN_TREE, "algorithms", tree.name)

    found = load("algorithms")

    assert "whole-dance" in found.values
    assert found.broken == {
        "tree_of_arms.raises": f"RuntimeError: not yet ({tree / 'raises.py'}:1)",
        "tree_of_arms.seven": "'seven' is no algorithm; a dataclass's instance with an `info` is wanted",
    }
    assert call(["list"]).err.count("tree_of_arms.") == 2


def test_a_name_taken_twice_is_refused_with_both_origins(install, call):
    install("first", {"first_arm": ONE.format("my-dance")})
    install("second", {"second_arm": ONE.format("my-dance")})

    answer = call(["run", "--algos", "dance", "--dry-run"])

    assert (answer.status, answer.out) == (2, "")
    assert "two plugins are called 'my-dance'" in answer.err
    assert "entry point 'first-arm' of distribution 'first' (module first_arm)" in answer.err
    assert "entry point 'second-arm' of distribution 'second' (module second_arm)" in answer.err
    assert answer.err.endswith("; rename one, or uninstall its distribution\n")


def test_an_installed_module_takes_no_name_of_the_tree(install):
    install("theirs", {"their_dance": ONE.format("dance")})

    with pytest.raises(InputError, match=r"'dance': algorithms\.dance and entry point 'their-dance' of distribution"):
        load("algorithms")


def test_modules_of_the_tree_that_are_entry_points_as_well_are_no_second_plugins(install):
    install("arbor", {"algorithms_dance": ""}, named="algorithms.dance")

    found = load("algorithms")

    assert found.origins["dance"] == "algorithms.dance"
    assert found.broken == {}


def test_a_module_whose_file_is_named_too_is_one_plugin(install, tmp_path):
    install("theirs", {"theirs_arm": ONE.format("their-dance")})

    for file, name in ((tmp_path / "site" / "theirs_arm.py", "their-dance"), (Path(dance.__file__), "dance")):
        assert load("algorithms", [file]).origins[name] == str(file)


def test_a_module_that_two_entry_points_name_is_one_plugin(install):
    install("theirs", {"one_name": ONE.format("theirs"), "another_name": ""}, named="one_name")

    assert "theirs" in load("algorithms").values
