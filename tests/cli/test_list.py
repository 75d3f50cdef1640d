"""`bench list` names everything that has a name, `bench report` rebuilds a report."""

from __future__ import annotations

import pytest

from bench.presets import PRESETS
from bench.registry import load


def test_list_names_every_plugin_and_preset(call):
    answer = call(["list"])

    assert (answer.status, answer.err) == (0, "")
    names = [line.split()[0] for line in answer.out.splitlines()]
    known = [*load("algorithms").values, *load("rewards").values, *load("models").values, *PRESETS]
    assert sorted(names) == sorted([*known, "algorithms", "rewards", "models", "presets"])


def test_a_variant_says_how_it_differs_from_its_family(call):
    lines = call(["list"]).out.splitlines()

    (line,) = [line for line in lines if line.split()[0] == "branch-widpru"]
    assert line.endswith("[width=parent-top1]")


def test_list_names_a_plugin(call, files):
    assert "my-dance" in call(["list", "--plugin", str(files / "plugin.py")]).out


def test_help_of_each_verb(call, capsys):
    for verb in ([], ["run"], ["list"], ["report"], ["theory"]):
        with pytest.raises(SystemExit) as end:
            call([*verb, "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: bench {verb[0] if verb else 'run'}")


def test_report_of_a_suite_of_another_version_is_an_input_error(call, tmp_path):
    folder = tmp_path / "runs" / "later"
    (folder / "base-0").mkdir(parents=True)
    (folder / "suite.yaml").write_text("name: later\nshared: {}\n")
    (folder / "base-0" / "result.json").write_text('{"version": 99}')

    answer = call(["report", "later"])

    assert answer.status == 2
    assert "record version 99" in answer.err
    assert "upgrade" in answer.err


def test_report_names_the_nearest_suite(call, tmp_path):
    (tmp_path / "runs" / "quick-tiny").mkdir(parents=True)
    (tmp_path / "runs" / "quick-tiny" / "suite.yaml").write_text("name: quick-tiny\n")

    answer = call(["report", "quick-tinny"])

    assert answer.status == 2
    assert "did you mean 'quick-tiny'?" in answer.err
