"""What lists and folders say: every prompt whole, and what is none refused with its line."""

import json
import os

import pytest

from bench.registry import InputError
from bench.scorers.captions import captioned, left_out

ODD = "two\nlines, a \x0b tab, a \u2028 line, a \x85 next and 'quotes'"


@pytest.fixture
def here(tmp_path):
    """A folder of two files that end as images do."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def prompts(source):
    return [one.prompt for one in captioned(source)]


def listed(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return prompts(folder / name)


def test_a_quoted_field_of_csv_is_the_prompt_as_it_stands(here):
    assert listed(here, "l.csv", f'image,prompt\r\na.png,"{ODD}"\r\nb.png,"say ""hi"""\r\n') == [ODD, 'say "hi"']


def test_a_prompt_of_jsonl_is_whole_whatever_ends_lines_elsewhere(here):
    row = json.dumps({"image": "a.png", "prompt": ODD}, ensure_ascii=False)
    assert listed(here, "l.jsonl", f"{row}\r\n\r\n{row}\n") == [ODD, ODD]


@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_list(here, name):
    text = "image,prompt\na.png,x\n" if name == "l.csv" else '{"image": "a.png", "prompt": "x"}'
    assert listed(here, name, b"\xef\xbb\xbf" + text.encode()) == ["x"]


@pytest.mark.parametrize(("prompt", "found"), [("", ""), ("x", "x"), ("  x", "  x")])
def test_the_first_column_of_prompts_decides_even_where_it_is_empty(here, prompt, found):
    assert listed(here, "l.csv", f"image,text,prompt\na.png,another,{prompt}\n") == [found]
    assert listed(here, "l.jsonl", json.dumps({"image": "a.png", "text": "another", "prompt": prompt})) == [found]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.csv", "image,prompt\na.png,x\nb.png,a cat, black\n", "l.csv:3 has more fields than columns"),
        (
            "l.csv",
            'image,prompt\na.png,"a cat\nb.png,a dog\n',
            "l.csv:2 is not CSV from there on: unexpected end of data",
        ),
        ("l.csv", 'image,prompt\na.png,"a" cat\n', "l.csv:2 is not CSV"),
        ("l.csv", f"image,prompt\na.png,{'x' * 200_000}\n", "l.csv:2 is not CSV from there on: field larger than"),
        ("l.csv", "image,prompt\na.png\n", "l.csv:2: prompt is null, and a text is wanted"),
        ("l.csv", f"image,prompt\n{'x' * 300}.png,x\n", "1 files that are not there"),
        ("l.csv", "image,prompt\n,x\n", "l.csv:2: '' is no image or video"),
        ("l.csv", b"image,prompt\na.png,caf\xe9\n", "l.csv is not UTF-8 text"),
        ("l.jsonl", '{"image": "a.png", "prompt": "half \\ud83d"}', r'prompt is "half \ud83d", and a text'),
        ("l.jsonl", '{"image": "a.png", "prompt": null, "text": "x"}', "l.jsonl:1: prompt is null"),
        ("l.jsonl", "\n{}\n", "l.jsonl:2 has no file_name"),
        ("l.jsonl", "[" * 100_000, "l.jsonl:1 is not JSON"),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(here, name, text, says):
    with pytest.raises(InputError) as caught:
        listed(here, name, text)
    assert says in str(caught.value)


def test_a_caption_beside_an_image_is_utf8_with_a_byte_order_mark_or_without(here):
    (here / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    (here / "b.txt").write_bytes(b"")
    assert prompts(here) == ["café", ""]
    (here / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"b\.txt is not UTF-8 text"):
        prompts(here)


def test_a_name_that_is_not_utf8_is_refused(here):
    (here / "a.png").rename(os.fsdecode(os.fsencode(here) + b"/\xe9.png"))
    (here / "b.txt").write_text("x")
    (here / os.fsdecode(b"\xe9.txt")).write_text("x")
    with pytest.raises(InputError, match=r"udce9\.png': its name is not UTF-8"):
        prompts(here)


def test_what_a_folder_has_besides_is_told(here):
    for name in ("a.txt", "b.txt", "c.txt", "d.jp2", ".hidden"):
        (here / name).write_text("x")
    (here / "more").mkdir()
    assert left_out(here, captioned(here)) == ["c.txt", "d.jp2", "more"]
    (here / "more" / "e.png").write_bytes(b"")
    (here / "metadata.csv").write_text("file_name,text\nb.png,x\nmore/e.png,x\n")
    assert left_out(here, captioned(here)) == ["a.png", "a.txt", "c.txt", "d.jp2"]
    assert left_out(here / "metadata.csv", captioned(here / "metadata.csv")) == []


@pytest.fixture
def samples(tmp_path):
    """The samples of a base record with two prompts."""
    (tmp_path / "base-1" / "samples").mkdir(parents=True)
    (tmp_path / "base-1" / "features.npz").write_bytes(b"")
    (tmp_path / "base-1" / "result.json").write_text('{"prompts": ["zero", "one"]}')
    (tmp_path / "base-1" / "samples" / "001.png").write_bytes(b"")
    return tmp_path / "base-1" / "samples"


def test_samples_have_their_prompts_from_inside_their_folder_too(samples, monkeypatch):
    monkeypatch.chdir(samples)
    assert prompts(type(samples)(".")) == ["one"]


@pytest.mark.parametrize("name", ["grid.png", "-1.png", "999.png", "002.png", "²1.png"])
def test_another_file_among_the_samples_of_a_run_is_refused(samples, name):
    (samples / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"is no sample of the run.* 000 to 001: move it elsewhere"):
        prompts(samples)


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_a_record_without_prompts_is_named(samples, text):
    (samples.parent / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result\.json.* cannot be read"):
        prompts(samples)
