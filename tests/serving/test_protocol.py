"""What is sent comes out as it went in, and what is not of the protocol is said in one line."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.contract import RewardInfo
from bench.serving import protocol
from bench.serving.protocol import About, Answer
from bench.serving.sent import MalformedError, item

INFO = RewardInfo(unit="cosine", low=-1.0, high=1.0, higher_is_better=True, revision="1", reference="a paper")
VIDEO = replace(INFO, media="video")
PIXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def coded(array: np.ndarray, **changes: Any) -> dict[str, Any]:
    return json.loads(item(array)) | changes


def filed(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> dict[str, str]:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return {kind.lower(): base64.b64encode(file.getvalue()).decode()}


def asking(*items: Any, media: str = "image", **changes: Any) -> bytes:
    return json.dumps({"prompts": ["a cat"] * len(items), f"{media}s": list(items)} | changes).encode()


def test_eight_bit_pixels_come_out_as_they_went_in():
    found = protocol.read_request(protocol.request([item(PIXELS)], ["a “cat”"], [7], "image"), INFO)
    np.testing.assert_array_equal(found.pixels[0], PIXELS)
    assert found.pixels[0].dtype == np.uint8
    assert found.prompts == ("a “cat”",)
    assert found.group.tolist() == [7]


def test_floats_come_out_to_the_last_bit():
    pixels = (PIXELS / np.float32(59)).astype(np.float32)
    found = protocol.read_request(asking(coded(pixels)), INFO)
    assert found.pixels[0].tobytes() == pixels.tobytes()


def test_a_video_is_a_list_of_frames():
    frames = np.stack([PIXELS, PIXELS + 1])
    found = protocol.read_request(protocol.request([item(frames)], ["a cat runs"], [0], "video"), VIDEO)
    np.testing.assert_array_equal(found.pixels[0], frames)


def test_a_png_has_the_pixels_of_its_picture():
    file = io.BytesIO()
    Image.fromarray(PIXELS.transpose(1, 2, 0)).save(file, "PNG")
    found = protocol.read_request(asking({"png": base64.b64encode(file.getvalue()).decode()}), INFO)
    np.testing.assert_array_equal(found.pixels[0], PIXELS)


def test_a_jpeg_is_taken_as_it_is():
    assert protocol.read_request(asking(filed("JPEG")), INFO).pixels[0].shape == (3, 4, 5)


def test_without_groups_the_images_of_a_prompt_are_one():
    body = asking(*[coded(PIXELS)] * 3, prompts=["a", "b", "a"])
    assert protocol.read_request(body, INFO).group.tolist() == [0, 1, 0]


WRONG: dict[str, tuple[bytes, str]] = {
    "pickled bytes": (pickle.dumps({"prompts": ["a"]}), "no JSON in UTF-8"),
    "latin-1": ('{"prompts": ["é"]}'.encode("latin-1"), "no JSON in UTF-8"),
    "nothing": (b"", "no JSON"),
    "a list": (b"[1]", "no JSON object"),
    "a deep list": (b"[" * 100_000, "no JSON"),
    "no images": (asking(), "no list 'images'"),
    "videos": (asking([coded(PIXELS)], media="video"), "this scorer takes images"),
    "too many": (asking(*[coded(PIXELS)] * 5), "5 images are more than max_items, 4"),
    "no prompts": (asking(coded(PIXELS), prompts=None), "`prompts` is to be a list of texts"),
    "a number as prompt": (asking(coded(PIXELS), prompts=[1]), "`prompts` is to be a list of texts"),
    "a prompt too few": (asking(coded(PIXELS), prompts=[]), "1 images and 0 prompts"),
    "half a character": (asking(coded(PIXELS), prompts=["\ud800"]), "half a character"),
    "a group of text": (asking(coded(PIXELS), group=["0"]), "`group` is to be a list of whole numbers"),
    "a group of truth": (asking(coded(PIXELS), group=[True]), "`group` is to be a list of whole numbers"),
    "a huge group": (asking(coded(PIXELS), group=[2**63]), "`group` is to be a list of whole numbers"),
    "a group too many": (asking(coded(PIXELS), group=[0, 1]), "1 prompts and 2 numbers in `group`"),
    "an image of text": (asking("cat.png"), r"images\[0\] is to be an object with one of"),
    "two images in one": (asking(coded(PIXELS) | filed()), r"images\[0\] is to be an object with one of"),
    "no base64": (asking({"png": "!!!!"}), r"images\[0\] is no base64"),
    "no base64 of raw pixels": (asking(coded(PIXELS, raw="!" * 80)), r"images\[0\] is no base64"),
    "no PNG": (asking({"png": base64.b64encode(b"GIF89a").decode()}), r"images\[0\] is no PNG"),
    "a JPEG as PNG": (asking({"png": filed("JPEG")["jpeg"]}), r"images\[0\] is no PNG"),
    "half a PNG": (asking({"png": filed(size=(64, 64))["png"][:80]}), r"images\[0\] is a damaged PNG"),
    "transparency": (asking(filed(mode="RGBA")), "of mode RGBA: RGB is wanted"),
    "grey": (asking(filed("JPEG", "L")), "of mode L: RGB is wanted"),
    "another dtype": (asking(coded(PIXELS, dtype="float16")), "`dtype` is to be uint8 or float32"),
    "channels first": (asking(coded(PIXELS, shape=[3, 4, 5])), r"\[height, width, 3\], RGB, not \[3, 4, 5\]"),
    "channels last": (asking(coded(PIXELS / np.float32(59), shape=[4, 5, 3])), r"\[3, height, width\], RGB"),
    "no height": (asking(coded(PIXELS, shape=[0, 5, 3])), "`shape` is to be three whole numbers"),
    "a shape of truth": (asking(coded(PIXELS, shape=[True, 5, 3])), "`shape` is to be three whole numbers"),
    "a shape of more": (asking(coded(PIXELS, shape=[10**9, 10**9, 3])), "`raw` is not as long"),
    "a shape of a byte more": (asking(coded(PIXELS[:, :, :1], shape=[4, 1, 3], raw="A" * 12 + "AAA=")), "`raw` has 11"),
    "a long side": (asking(coded(np.zeros((3, 1, 20_000), np.uint8))), "a side has 16,384 at most"),
    "brightness": (asking(coded(np.full((3, 2, 2), 2, np.float32))), r"float32 lies in \[0, 1\]"),
    "not a number": (asking(coded(np.full((3, 2, 2), np.nan, np.float32))), r"float32 lies in \[0, 1\]"),
    "a bomb": (asking(*[filed(size=(1000, 1000))] * 4), "12,000,000 bytes, more than max_bytes, 10,000,000"),
    "a great bomb": (asking({"png": "PLACE"}), r"images\[0\] is no PNG that is read here \(DecompressionBombError\)"),
}


def bomb() -> str:
    """Return a PNG that claims 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(100))) + part(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_said_in_one_line(what: str):
    body, says = WRONG[what]
    with pytest.raises(MalformedError, match=says) as raised:
        protocol.read_request(body.replace(b"PLACE", bomb().encode()), INFO, 4, 10_000_000)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("video", "says"),
    [
        ([], r"videos\[0\] is to be a list of images"),
        ({}, r"videos\[0\] is to be a list of images"),
        ([coded(PIXELS), "x"], r"videos\[0\]\[1\] is to be an object"),
        ([coded(PIXELS), coded(PIXELS[:, 1:])], "not all of one size"),
        ([coded(PIXELS), coded(PIXELS / np.float32(59))], "not all of one size and kind"),
    ],
)
def test_a_wrong_video_is_said_in_one_line(video: Any, says: str):
    with pytest.raises(MalformedError, match=says):
        protocol.read_request(asking(video, media="video"), VIDEO)


def test_a_scorer_that_compares_images_takes_groups_of_one_size():
    small, both = PIXELS[:, 1:], replace(INFO, groupwise=True)
    with pytest.raises(MalformedError, match="of one size"):
        protocol.read_request(asking(coded(PIXELS), coded(small), group=[0, 0]), both)
    assert len(protocol.read_request(asking(coded(PIXELS), coded(small), group=[0, 1]), both).pixels) == 2


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_nothing_else_happens(body: bytes):
    with pytest.raises(MalformedError):
        protocol.read_request(body, INFO)
    with pytest.raises(MalformedError):
        protocol.read_answer(body, 1)
    with pytest.raises(MalformedError):
        protocol.read_about(body)
    assert "\n" not in protocol.read_error(body)


# --- what a server tells ---------------------------------------------------------------------------------------------


def about(**changes: Any) -> bytes:
    told = json.loads(protocol.about(About(name="hpsv2.1", info=INFO, max_items=8, max_bytes=1000)))
    return json.dumps(told | changes).encode()


@pytest.mark.parametrize("name", ["soft", "hpsv2.1", "pickscore(scale=logit)", "clip(model=ViT-B-32:openai)"])
def test_a_server_tells_what_its_scorer_is(name: str):
    info = replace(INFO, low=-math.inf, high=math.inf, media="video", pixels="uint8", groupwise=True)
    told = About(name=name, info=info, max_items=8, max_bytes=1000)
    assert protocol.read_about(protocol.about(told)) == told


def test_what_a_later_version_may_add_to_a_scorer_is_not_minded():
    info = json.loads(about())["info"] | {"colour": "blue"}
    assert protocol.read_about(about(info=info)).info == INFO


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": 2}, "it speaks protocol 2 and this program 1"),
        ({"protocol": None}, "no server of `bench serve`"),
        ({"protocol": True}, "no server of `bench serve`"),
        ({"name": "a:0.5"}, "its name is none"),
        ({"name": "a\nb"}, "its name is none"),
        ({"name": "a" * 201}, "its name is none"),
        ({"name": 7}, "its name is none"),
        ({"max_items": 0}, "whole numbers from 1 on"),
        ({"max_bytes": "1"}, "whole numbers from 1 on"),
        ({"info": None}, "`info` is to be an object"),
        ({"info": {}}, "its `info` lacks 'unit'"),
        ({"info": json.loads(about())["info"] | {"low": "0"}}, "info.low is '0'"),
        ({"info": json.loads(about())["info"] | {"low": math.nan}}, "info.low is nan"),
        ({"info": json.loads(about())["info"] | {"low": 10**400}}, "info.low is 1000"),
        ({"info": json.loads(about())["info"] | {"unit": 1}}, "info.unit is 1"),
        ({"info": json.loads(about())["info"] | {"groupwise": 1}}, "info.groupwise is 1"),
        ({"info": json.loads(about())["info"] | {"pixels": "int4"}}, "info.pixels is 'int4'"),
    ],
)
def test_a_wrong_server_is_said_in_one_line(changes: dict[str, Any], says: str):
    with pytest.raises(MalformedError, match=says):
        protocol.read_about(about(**changes))


# --- answers ---------------------------------------------------------------------------------------------------------


def answered(**changes: Any) -> bytes:
    return json.dumps({"scores": [0.5, 1], "failures": [], "name": "soft", "revision": "1"} | changes).encode()


@given(st.lists(st.floats(), max_size=20), st.lists(st.text(), max_size=3))
def test_scores_come_out_to_the_last_bit_and_what_is_not_finite_is_nan(scores: list[float], failures: list[str]):
    told = Answer(scores=np.array(scores, np.float64), failures=tuple(failures), name="soft", revision="1")
    found = protocol.read_answer(protocol.answer(told), len(scores))
    np.testing.assert_array_equal(found.scores, [s if math.isfinite(s) else math.nan for s in scores])
    assert len(protocol.answer(told)) <= protocol.longest_answer(len(scores))
    assert all(text.isprintable() for text in found.failures)


@pytest.mark.parametrize("text", ["null", "NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_what_is_no_finite_number_is_no_score(text: str):
    body = answered().replace(b"0.5", text.encode())
    np.testing.assert_array_equal(protocol.read_answer(body, 2).scores, [np.nan, 1.0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": None}, "no list `scores`"),
        ({"scores": ["0.5", 1]}, "no list `scores` of numbers"),
        ({"scores": [True, 1]}, "no list `scores` of numbers"),
        ({"scores": [0.5]}, "1 scores for 2 asked"),
        ({"scores": [0.5, 1, 1]}, "3 scores for 2 asked"),
        ({"failures": "all"}, "`failures` is no list of texts"),
        ({"name": None}, "does not say whose it is"),
        ({"revision": 1}, "does not say whose it is"),
    ],
)
def test_a_wrong_answer_is_said_in_one_line(changes: dict[str, Any], says: str):
    with pytest.raises(MalformedError, match=says):
        protocol.read_answer(answered(**changes), 2)


def test_the_words_of_the_other_side_are_a_line_of_bounded_length():
    assert protocol.line("a\n\x1b[31mb\t c\ud800") == "a [31mb c?"
    assert len(protocol.line("a" * 10_000)) == 500


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_of_a_file_or_else_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("ARBOR_TOKEN", raising=False)
    assert protocol.token_of() == ""
    monkeypatch.setenv("ARBOR_TOKEN", "of-the-environment")
    (tmp_path / "token").write_text("of-a-file\n")
    assert protocol.token_of() == "of-the-environment"
    assert protocol.token_of(str(tmp_path / "token")) == "of-a-file"


@pytest.mark.parametrize("token", ["", "two words", "é", "a\nb"])
def test_what_is_no_token_is_refused_and_not_printed(tmp_path, token: str):
    (tmp_path / "token").write_text(token)
    with pytest.raises(ValueError, match="holds no token: one word of printable ASCII") as raised:
        protocol.token_of(str(tmp_path / "token"))
    assert not token or token not in str(raised.value).split(" holds ")[1].replace("one word", "")


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_this_machine_is_known_from_others(host: str, own: bool):
    assert protocol.is_loopback(host) is own
