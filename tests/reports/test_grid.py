import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.grid import Cell, Column, code, csv_text, escape, grid, markdown, plain, select, transposed
from reports.numbers import decimals, fixed, plain_value, reach, scale, signed, trimmed

TABLE = grid(
    [
        Column(title="method", numeric=False, code=True),
        Column(title="paper", group="NFE"),
        Column(title="calls", group="NFE", note="forwards"),
        "remark",
    ],
    [
        ("branch(splits=[0,4])", "13.6875", Cell(text="12", sub="two", strong=True), "a|b *c* <d>"),
        ("x|y", "1", "2", ""),
    ],
)


def test_markdown():
    assert markdown(TABLE) == (
        "| method | NFE paper | NFE calls (forwards) | remark |\n"
        "| :--- | ---: | ---: | :--- |\n"
        "| `branch(splits=[0,4])` | 13.6875 | **12** (two) | a\\|b \\*c\\* \\<d\\> |\n"
        "| `x\\|y` | 1 | 2 |  |\n"
    )


@given(st.text(max_size=20))
def test_no_text_breaks_out_of_its_markdown_cell(text):
    table = markdown(grid(["a", Column(title="b", numeric=False, code=True)], [(text, text.replace("\n", " "))]))
    last = table.rstrip("\n").split("\n")[-1]
    assert len(escape(text).splitlines()) <= 1
    assert last.replace("\\\\", "").replace("\\|", "").count("|") == 3


def test_code_with_backticks_gets_a_longer_fence():
    assert code("a`b") == "`` a`b ``"


def test_terminal_text_is_aligned_and_names_a_group_once():
    assert plain(TABLE) == [
        "                          NFE",
        "method                  paper     calls  remark",
        "--------------------  -------  --------  -----------",
        "branch(splits=[0,4])  13.6875  12 (two)  a|b *c* <d>",
        "x|y                         1         2",
    ]


def test_csv_is_read_back():
    rows = [["a,b", 'say "x"', 1.5], ["", None, True]]
    read = list(csv.reader(io.StringIO(csv_text(["p", "q", "r"], rows))))
    assert read == [["p", "q", "r"], ["a,b", 'say "x"', "1.5"], ["", "", "True"]]


def test_spans_follow_neighbouring_groups():
    assert TABLE.spans == [("", 1), ("NFE", 2), ("", 1)]
    assert grid(["a", "b"], []).spans == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(13.6875, "13.6875"), (20.0, "20"), (2.125, "2.125"), (None, "–"), (float("nan"), "–"), (100.0, "100")],
)
def test_counts_a_leaf_are_exact(value, text):
    assert trimmed(value) == text


def test_numbers():
    assert (fixed(-0.1234, 2), signed(0.0621, 3), signed(-0.1, 1)) == ("−0.12", "+0.062", "−0.1")
    assert (signed(-0.0001, 3), fixed(-0.0001, 3), signed(0.0, 1)) == ("0.000", "0.000", "0.0")
    assert (scale([3e11, 2e9]), scale([2e12]), scale([5.0])) == (("G", 1e9), ("T", 1e12), ("M", 1e6))
    assert (decimals(0.0, 1.0), decimals(0.0, 100.0), decimals(float("-inf"), float("inf"))) == (3, 2, 3)
    assert (decimals(None, None), decimals(0.0, None), decimals(None, 1.0)) == (3, 3, 3)
    assert (reach(-1.0, 1.0), reach(0.0, None), reach(None, None)) == ("−1 to 1", "0 to –", "unbounded")
    assert plain_value({"a": [1, None, True]}) == "{a: [1,none,true]}"


def test_a_selection_has_the_columns_named_in_their_order():
    table = select(grid(["a", "b", "c"], [("1", "2", "3")]), [2, 0])
    assert [column.title for column in table.columns] == ["c", "a"]
    assert [cell.text for cell in table.rows[0]] == ["3", "1"]


def test_a_transposed_table_has_a_row_a_method_and_a_column_a_key():
    table = transposed(grid(["shared key", "dance", "mix"], [("eta", "0.3", "0.7"), ("clip", "1", "2")]))
    assert [column.title for column in table.columns] == ["method", "eta", "clip"]
    assert [[cell.text for cell in row] for row in table.rows] == [["dance", "0.3", "1"], ["mix", "0.7", "2"]]


def test_a_table_without_rows_has_none_transposed():
    assert transposed(grid(["shared key", "dance"], [])).rows == ()
