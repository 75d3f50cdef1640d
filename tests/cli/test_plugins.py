"""A plugin is one file: an algorithm, a reward or a model comes with it, under its own name."""

from __future__ import annotations

import pytest

from bench.registry import InputError, load

ONE = "from algorithms.dance import Dance\nARMS = {{'{0}': Dance()}}\n"


def test_files_of_one_name_in_two_folders_are_two_plugins(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "arm.py").write_text(ONE.format(name))

    found = load("algorithms", [tmp_path / "first" / "arm.py", tmp_path / "second" / "arm.py"])

    assert {"first", "second"} <= set(found.values)


def test_a_file_named_twice_is_one_plugin(tmp_path):
    (tmp_path / "arm.py").write_text(ONE.format("mine"))

    assert "mine" in load("algorithms", [tmp_path / "arm.py"] * 2).values


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


def test_another_distribution_that_does_not_load_hides_no_plugin(monkeypatch, call):
    class Broken:
        value = "no_such_module_of_another_distribution"

    monkeypatch.setattr("bench.registry.entry_points", lambda group: [Broken] if group == "bench.algorithms" else [])

    found = load("algorithms")
    assert {"dance", "mix", "branch"} <= set(found.values)
    assert "No module named" in found.broken[Broken.value]
    assert Broken.value in call(["list"]).err
    with pytest.raises(InputError, match=f"{Broken.value} does not load"):
        found.get("theirs")
