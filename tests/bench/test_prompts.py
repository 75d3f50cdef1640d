"""Files of prompts: every format is read, and whatever is wrong with one is said with its place."""

import csv
import json
import re

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from bench.prompts import first_frames, read
from bench.registry import InputError

STRANGE = (
    'a "quoted", comma\'d; prompt',
    "ein Häuschen \N{SNOWMAN} 👩‍🚀",
    "\u202bقطة حمراء\u202c",
    "bell \x07, escape \x1b[31m, delete \x7f and line\u2028separator",
    "x" * 10_000,
    "\\n is no line break",
    "007",
    "null",
)
"""Prompts that must come out as they are; the fourth is no line of text, whose lines end at U+2028."""


def texts(path):
    return read(path, path.name).texts


def wrong(path):
    """Return what is said of a file; it is one line."""
    with pytest.raises(InputError) as error:
        read(path, path.name)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv_of(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def parquet_of(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: ascii(text)[:20])
def test_a_strange_prompt_comes_out_of_every_format_as_it_is(text, tmp_path):
    files = [
        written(tmp_path / "a.jsonl", json.dumps({"prompt": text}, ensure_ascii=False)),
        written(tmp_path / "b.JSONL", json.dumps(text)),
        written(tmp_path / "a.json", json.dumps([{"prompt": text}])),
        csv_of(tmp_path / "a.csv", [["prompt"], [text]]),
        parquet_of(tmp_path / "a.parquet", prompt=[text]),
    ]
    files += [] if "\u2028" in text else [written(tmp_path / "a.txt", text), written(tmp_path / "a.prompts", text)]
    assert {texts(file) for file in files} == {(text,)}


def test_lines_inside_a_prompt_stay_one_prompt(tmp_path):
    text = "a cat\nand a dog\r\n\r\nin two verses"
    assert texts(csv_of(tmp_path / "a.csv", [["prompt", "n"], [text, "1"]])) == (text,)
    assert texts(written(tmp_path / "a.json", json.dumps([text]))) == (text,)
    assert texts(parquet_of(tmp_path / "a.parquet", prompt=[text])) == (text,)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    for name, content in (("a.txt", "a"), ("a.csv", "prompt\na"), ("a.jsonl", '"a"'), ("a.json", '["a"]')):
        assert texts(written(tmp_path / name, b"\xef\xbb\xbf" + content.encode())) == ("a",)


def test_rows_without_a_prompt_are_empty_rows(tmp_path):
    assert texts(written(tmp_path / "a.txt", "a\n\n  \nb\n")) == ("a", "", "", "b")
    assert texts(written(tmp_path / "a.csv", 'prompt,n\na,1\n" ",2\n\nb,3\n')) == ("a", "", "", "b")
    assert texts(written(tmp_path / "a.jsonl", '{"prompt": null}\n""\n\n"b"\n')) == ("", "", "b")
    assert texts(parquet_of(tmp_path / "a.parquet", prompt=[None, " ", "b"])) == ("", "", "b")


@pytest.mark.parametrize(
    ("columns", "found"),
    [(("prompt", "caption", "text"), "prompt"), (("text", "id", "caption"), "caption"), (("id", "text"), "text")],
)
def test_the_first_known_column_is_the_prompt(columns, found, tmp_path):
    row = {name: f"of {name}" for name in columns}
    assert texts(written(tmp_path / "a.jsonl", json.dumps(row))) == (f"of {found}",)
    assert texts(csv_of(tmp_path / "a.csv", [columns, list(row.values())])) == (f"of {found}",)
    assert texts(parquet_of(tmp_path / "a.parquet", **{k: [v] for k, v in row.items()})) == (f"of {found}",)


def test_one_column_is_the_prompt_of_the_whole_file_whatever_comes_first(tmp_path):
    rows = [{"caption": "a", "prompt": "b"}, {"prompt": "c"}]
    for order in (rows, rows[::-1]):
        assert set(texts(written(tmp_path / "a.json", json.dumps(order)))) == {"b", "c"}


def test_a_file_without_a_known_column_says_which_there_are(tmp_path):
    files = [
        written(tmp_path / "a.jsonl", '{"id": 1, "Prompt": "a"}'),
        csv_of(tmp_path / "a.csv", [["id", "Prompt"], [1, "a"]]),
        parquet_of(tmp_path / "a.parquet", id=[1], Prompt=["a"]),
    ]
    for file in files:
        assert wrong(file) == f"{file.name} has no column prompt, caption or text; it has: 'id', 'Prompt'"


def test_columns_are_listed_in_a_line_of_bounded_length(tmp_path):
    said = wrong(csv_of(tmp_path / "a.csv", [["x" * 500] * 30]))
    assert "and 18 more" in said
    assert len(said) < 1000


TEXT = {
    "latin": (b"a\nb\ncaf\xe9", ["byte 7, line 3", "not UTF-8", "save it as UTF-8"]),
    "utf-16": ("a\nb".encode("utf-16"), ["not UTF-8", "byte 0"]),
    "utf-16-unmarked": ("a\nb".encode("utf-16-le"), ["line 1", "NUL", "save the file as UTF-8"]),
    "nul": (b"a\nb\nc\0d", ["line 3", "NUL"]),
}
JSONL = {
    "cut": ('{"prompt": "a"}\n\n{"prompt": "b', ["line 3", "no JSON"]),
    "number": ('"a"\n7', ["line 2: the prompt is a number, 7; text is wanted"]),
    "number-inside": ('{"prompt": 7.5}', ["line 1: the prompt is a number, 7.5"]),
    "truth": ('{"prompt": true}', ["the prompt is true"]),
    "nan": ('{"prompt": NaN}', ["the prompt is a number"]),
    "huge": (f'{{"prompt": {"9" * 5000}}}', ["line 1 is no JSON"]),
    "long": (f'{{"prompt": {"9" * 400}}}', ["the prompt is a number"]),
    "list": ('["a"]', ["line 1: the prompt is a list"]),
    "object": ('{"prompt": {"en": "a"}}', ["line 1: the prompt is an object"]),
    "null": ('"a"\nnull', ["line 2: the prompt is null"]),
    "missing": ('{"prompt": "a"}\n{"caption": "b"}', ["line 2 has no 'prompt'", "it has: 'caption'"]),
    "surrogate": ('"a"\n"\\ud800"', ["line 2", "half of a surrogate pair"]),
    "nul": ('"a"\n"b\\u0000"', ["line 2", "NUL"]),
    "image": ('{"prompt": "a", "image": 3}', ["line 1: the image is a number"]),
}
JSON = {
    "cut": ('[{"prompt": "a"},\n{"prompt"', ["no JSON", "line 2"]),
    "object": ('{"train": ["a"]}', ["holds an object; a list of prompts"]),
    "text": ('"a"', ["holds text"]),
    "deep": ("[" * 100_000, ["nested too deeply"]),
    "nested": ('["a", ["b"]]', ["item 2: the prompt is a list"]),
    "deeply-nested-prompt": ('[{"prompt": {"text": "a"}}]', ["item 1: the prompt is an object"]),
    "empty": ("", ["no JSON"]),
    "latin": ('["café"]'.encode("latin-1"), ["not UTF-8", "line 1"]),
}
CSV = {
    "comma": ("prompt,n\na,1\na cat, a dog,2\n", ["line 3 has 3 fields, the header 2", "quote"]),
    "short": ("prompt,n\na\n", ["line 2 has 1 fields, the header 2"]),
    "open-quote": ('prompt\n"a\nb\n', ["no CSV", "quote"]),
    "quote-in-the-middle": ('prompt\n"a" b\n', ["line 2 is no CSV"]),
    "endless": ('prompt\n"' + "x" * 200_000 + '"\n', ["line 2 is no CSV", "limit"]),
    "twice": ("prompt,prompt\na,b\n", ["the column 'prompt' twice"]),
    "headless": ("a red circle\na blue square\n", ["has no column", "it has: 'a red circle'"]),
    "empty": ("", ["has no column", "it has: none"]),
    "latin": ("prompt\ncafé\n".encode("latin-1"), ["not UTF-8", "line 2"]),
}
DAMAGED = [
    *((f"a.txt {name}", *case) for name, case in TEXT.items()),
    *((f"a.jsonl {name}", *case) for name, case in JSONL.items()),
    *((f"a.json {name}", *case) for name, case in JSON.items()),
    *((f"a.csv {name}", *case) for name, case in CSV.items()),
    ("a.parquet text", "prompt\na\n", ["damaged, or no parquet"]),
    ("a.parquet empty", "", ["damaged, or no parquet"]),
]


@pytest.mark.parametrize(("name", "content", "said"), DAMAGED, ids=[name for name, *_ in DAMAGED])
def test_what_is_wrong_with_a_file_is_said_with_its_place(name, content, said, tmp_path):
    message = wrong(written(tmp_path / name.split()[0], content))
    assert message.startswith(name.split()[0])
    for part in said:
        assert part in message


def test_a_damaged_parquet_is_named(tmp_path):
    whole = parquet_of(tmp_path / "a.parquet", prompt=[f"a picture of {n} cats" for n in range(1000)]).read_bytes()
    for content in (whole[:-100], whole[:50] + bytes(200) + whole[250:]):
        assert "a.parquet is damaged" in wrong(written(tmp_path / "a.parquet", content))


def test_a_parquet_column_of_numbers_is_no_text(tmp_path):
    assert "column 'prompt' holds int64; text is wanted" in wrong(parquet_of(tmp_path / "a.parquet", prompt=[1, 2]))


def test_parquet_text_may_be_large_or_in_a_dictionary(tmp_path):
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        column = pyarrow.array(["a", "b", "a"], pyarrow.string()).cast(kind)
        assert texts(parquet_of(tmp_path / "a.parquet", prompt=column)) == ("a", "b", "a")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for name in ("a.txt", "a.parquet"):
        (tmp_path / name).mkdir()
        assert f"{name} cannot be read: Is a directory" in wrong(tmp_path / name)


def picture(path, colour="red"):
    Image.new("RGB", (4, 4), colour).save(path)
    return path


def test_images_are_found_beside_the_file(tmp_path):
    (tmp_path / "frames").mkdir()
    red = picture(tmp_path / "frames" / "red.png")
    files = [
        written(tmp_path / "a.jsonl", '{"prompt": "a"}\n"b"\n{"prompt": "c", "image": "frames/red.png"}'),
        csv_of(tmp_path / "a.csv", [["image", "prompt"], ["", "a"], [" ", "b"], ["frames/red.png", "c"]]),
        parquet_of(tmp_path / "a.parquet", prompt=["a", "b", "c"], image=[None, "", "frames/red.png"]),
    ]
    for file in files:
        assert list(first_frames(read(file, file.name), tmp_path)) == [(2, red)]


def test_pictures_inside_a_parquet_are_no_paths(tmp_path):
    file = parquet_of(tmp_path / "a.parquet", prompt=["a"], image=[{"bytes": b"", "path": "a.png"}])
    assert read(file, "a").images == ()


def test_an_image_that_is_not_there_or_not_whole_is_named_with_its_row(tmp_path):
    picture(tmp_path / "red.png")
    written(tmp_path / "no.png", "this is no picture")
    written(tmp_path / "cut.png", (tmp_path / "red.png").read_bytes()[:60])
    for image, said in (
        ("gone.png", "is not there; paths are relative"),
        ("red.png/inside", "is not there"),
        ("x" * 300, "cannot be opened"),
        ("no.png", "cannot be opened"),
        ("cut.png", "cannot be opened"),
        (".", "cannot be opened"),
    ):
        file = csv_of(tmp_path / "a.csv", [["prompt", "image"], ["a", "red.png"], ["b", image]])
        with pytest.raises(InputError, match=f"^a.csv, line 3: the image {re.escape(repr(image))} {said}"):
            list(first_frames(read(file, file.name), tmp_path))
