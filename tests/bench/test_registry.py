from __future__ import annotations

from pathlib import Path

import pytest

from algorithms.dance import Dance
from bench.registry import InputError, load, nearest


def plugin(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


NEWCOMER = "from algorithms.dance import Dance\nARMS = {'newcomer': Dance(tf=0.5)}\n"


def test_algorithms_of_the_tree_are_found_by_name():
    found = load("algorithms")
    assert {"dance", "mix", "branch", "branch-widpru", "branch-deppru", "branch-mix"} <= set(found.values)
    assert found.get("dance") == Dance()
    assert found.origins["branch-mix"] == "algorithms.branch"
    assert found.broken == {}


def test_rewards_and_models_are_found_by_name():
    assert "soft" in load("rewards").values
    assert "tiny-flux" in load("models").values


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(InputError, match="unknown algorithm 'brunch'; did you mean 'branch'"):
        load("algorithms").get("brunch")
    with pytest.raises(InputError, match=r"unknown reward 'xyzzy'; known: .*soft"):
        load("rewards").get("xyzzy")


def test_a_file_adds_its_plugins(tmp_path: Path):
    file = plugin(tmp_path, NEWCOMER)
    found = load("algorithms", [file, file])
    assert found.get("newcomer") == Dance(tf=0.5)
    assert found.origins["newcomer"] == str(file)
    assert "newcomer" not in load("algorithms").values


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path):
    (tmp_path / "other").mkdir()
    files = [plugin(tmp_path, NEWCOMER), plugin(tmp_path / "other", NEWCOMER.replace("newcomer", "second"))]
    assert {"newcomer", "second"} <= set(load("algorithms", files).values)


def test_a_name_taken_twice_is_refused(tmp_path: Path):
    file = plugin(tmp_path, NEWCOMER.replace("newcomer", "dance"))
    with pytest.raises(InputError, match=r"two plugins are called 'dance': algorithms\.dance and"):
        load("algorithms", [file])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise RuntimeError('no such thing')", "does not load: RuntimeError: no such thing"),
        ("import nothing_of_this_name", "does not load: ModuleNotFoundError"),
        ("x = 1", "has none of ARMS, REWARDS, MODELS"),
        ("ARMS = [1]", "ARMS must be a mapping"),
        ("ARMS = {'a': 1}", "'a' is no algorithm"),
        ("from algorithms.dance import Dance\nARMS = {'a': Dance}", "'a' is no algorithm"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused_with_the_reason(tmp_path: Path, text: str, says: str):
    with pytest.raises(InputError) as error:
        load("algorithms", [plugin(tmp_path, text)])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reward_file_without_a_reward_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="'r' is no reward"):
        load("rewards", [plugin(tmp_path, "REWARDS = {'r': len}")])


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        load("algorithms", [tmp_path / "gone.py"])


def test_the_nearest_name_or_all_of_them():
    assert nearest("danse", ["dance", "mix"]) == "; did you mean 'dance'?"
    assert nearest("zzz", ["dance", "mix"]) == "; known: dance, mix"
