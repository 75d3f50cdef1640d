from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest

from bench.parse import coerce, key_value, replaced, split_top, yaml_value
from bench.registry import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    on: bool = False
    mode: Literal["slow", "fast"] = "slow"
    steps: tuple[int, ...] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    splits: Literal["dense", "sparse"] | tuple[int, ...] = "dense"
    name: str = "x"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is not negative")


def changed(**changes) -> Settings:
    return replaced(Settings(), changes, "arm")


def test_values_take_the_types_of_the_dataclass():
    assert changed(count=3, rate=2, on=True, mode="fast", steps=[0, 1], pair=[1, 2], splits="sparse", name="y") == (
        Settings(count=3, rate=2.0, on=True, mode="fast", steps=(0, 1), pair=(1.0, 2.0), splits="sparse", name="y")
    )
    assert changed(splits=[0, 3], steps=None) == Settings(splits=(0, 3))


def test_what_yaml_reads_as_text_may_be_a_number():
    assert changed(rate="1e-3").rate == 1e-3
    assert changed(rate="inf").rate == math.inf
    assert changed(rate=math.inf).rate == math.inf


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cuont": 3}, "arm has no setting 'cuont'; did you mean 'count'"),
        ({"count": 1.5}, "arm.count=1.5: a whole number is wanted"),
        ({"count": True}, "a whole number is wanted"),
        ({"count": "1"}, "a whole number is wanted"),
        ({"rate": "much"}, "arm.rate='much': a number is wanted"),
        ({"rate": True}, "a number is wanted"),
        ({"rate": math.nan}, "a number is wanted"),
        ({"rate": None}, "a number is wanted"),
        ({"on": 1}, "true or false is wanted"),
        ({"on": "yes"}, "true or false is wanted"),
        ({"mode": "fats"}, "arm.mode='fats' is not a choice; did you mean 'fast'"),
        ({"steps": 3}, "a list is wanted"),
        ({"steps": [0, "a"]}, "a whole number is wanted"),
        ({"pair": [1]}, "2 values are wanted"),
        ({"splits": "dnese"}, "did you mean 'dense'"),
        ({"splits": [0, 1.5]}, "a whole number is wanted"),
        ({"name": 3}, "text is wanted"),
        ({"count": -1}, "arm: count is not negative"),
    ],
)
def test_what_a_setting_does_not_take_is_refused_by_name(change, says):
    with pytest.raises(InputError) as error:
        changed(**change)
    assert says in str(error.value)


def test_an_empty_value_is_empty_text():
    key, value = key_value("features=")
    assert (key, coerce(value, str, "features")) == ("features", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tf=0.6", ("tf", 0.6)),
        (" splits = [0, 3] ", ("splits", [0, 3])),
        ("s=.inf", ("s", math.inf)),
        ("prompts=a=b.txt", ("prompts", "a=b.txt")),
    ],
)
def test_a_setting_is_a_key_and_what_yaml_reads_in_its_value(text, expected):
    assert key_value(text) == expected


@pytest.mark.parametrize("text", ["tf", "=3", " = 3", ""])
def test_a_setting_without_key_or_sign_is_refused(text):
    with pytest.raises(InputError, match="key=value"):
        key_value(text)


@pytest.mark.parametrize("text", ["[0, 1", "{a", "2024-13-40", "'open"])
def test_a_value_yaml_cannot_read_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="not a value YAML reads") as error:
        yaml_value(text, "splits")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("dance,mix", ["dance", "mix"]),
        ("branch(splits=[0,1],s=2), mix(window=3) ,", ["branch(splits=[0,1],s=2)", "mix(window=3)"]),
        ("", []),
        (" , ", []),
    ],
)
def test_commas_inside_brackets_split_nothing(text, parts):
    assert split_top(text) == parts


@pytest.mark.parametrize("text", ["branch(a=1", "branch[0", "a)", "a)("])
def test_unbalanced_brackets_are_refused(text):
    with pytest.raises(InputError, match="bracket"):
        split_top(text)
