from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.conformance.toy import ToyPolicy
from bench.encoded import encode, place
from bench.environment import cache_folder
from bench.policy import Encoder, encoded
from bench.processes import Processes

TEXTS = ("a cat", "", "naïve 猫 🐈", "a cat\nsaid 'no'")


class Asked(ToyPolicy):
    """A policy that writes down what it was asked to encode, and how often its encoders were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.asked = 0, list[tuple[str, Path | None]]()

    def encoder(self) -> Encoder:
        self.loaded += 1
        toy = super().encoder()

        def one(prompt: str, image: Path | None):
            self.asked.append((prompt, image))
            return (*toy(prompt, image), torch.full((2,), float(len(prompt)), dtype=torch.bfloat16))

        return one


class Meeting(Processes):
    """Processes of which the other one runs when this one waits for it."""

    def gathered(self, value):
        if self.group:
            self.group()
        return [value]


def on_disk(policy: Asked, folder: Path, texts=TEXTS, needed=None, **how):
    return encode(policy, texts, folder, images=how.pop("images", {}), needed=needed or range(len(texts)), **how)


def test_what_is_read_is_what_was_encoded_bit_for_bit(tmp_path):
    policy = Asked()
    there = on_disk(policy, tmp_path).rows(torch.tensor([2, 0, 0, 3]))
    here = encoded(policy, [TEXTS[2], TEXTS[0], TEXTS[0], TEXTS[3]])
    for mine, direct in zip(there.tensors, here.tensors, strict=True):
        assert mine.dtype == direct.dtype
        assert torch.equal(mine, direct)
    assert there.negative is here.negative is None


def test_a_prompt_is_encoded_once_and_the_encoders_are_loaded_only_where_one_is_missing(tmp_path):
    first, second = Asked(), Asked()
    on_disk(first, tmp_path, ("a", "b", "a"))
    on_disk(second, tmp_path, ("b", "a"))
    assert sorted(text for text, _ in first.asked) == ["a", "b"]
    assert (first.loaded, second.loaded) == (1, 0)


def test_only_what_will_be_read_is_encoded(tmp_path):
    policy = Asked()
    found = on_disk(policy, tmp_path, ("a", "b", "c"), needed=[2])
    assert [text for text, _ in policy.asked] == ["c"]
    assert found.rows(torch.tensor([2])).tensors[1].tolist() == [[1.0, 1.0]]
    with pytest.raises(FileNotFoundError):
        found.rows(torch.tensor([0]))


def test_under_guidance_the_empty_prompt_comes_with_every_row(tmp_path):
    found = on_disk(Asked(), tmp_path, ("ab",), guided=True)
    assert found.negative is not None
    assert found.negative[1].tolist() == [0.0, 0.0]
    row = found.rows(torch.tensor([0])).rows(torch.tensor([0, 0])).to(torch.device("cpu"))
    assert row.negative is not None
    assert torch.equal(row.negative[0], found.negative[0])


def test_the_same_text_of_another_first_frame_is_another_row(tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    policy = Asked()
    for image in (one, other, one):
        on_disk(policy, tmp_path / "cache", ("a",), images={"a": str(image)})
    assert policy.asked == [("a", one), ("a", other)]


def test_each_process_encodes_its_share_and_sees_all(tmp_path):
    first, second, texts = Asked(), Asked(), tuple("abcdef")

    def other() -> None:
        on_disk(second, tmp_path, texts, processes=Meeting(rank=1, count=2))

    found = on_disk(first, tmp_path, texts, processes=Meeting(rank=0, count=2, group=other))
    assert found.rows(torch.arange(6)).tensors[0].shape == (6, 2)
    shares = {text: int(place(tmp_path, text, None).stem, 16) % 2 for text in texts}
    assert {text for text, _ in first.asked} == {text for text, share in shares.items() if share == 0}
    assert {text for text, _ in second.asked} == {text for text, share in shares.items() if share == 1}


def test_a_half_written_file_is_no_row(tmp_path):
    policy = Asked()
    on_disk(policy, tmp_path, ("a",))
    file = place(tmp_path, "a", None)
    file.rename(file.with_suffix(".123.part"))
    on_disk(policy, tmp_path, ("a",))
    assert policy.loaded == 2
    assert file.is_file()


@pytest.mark.parametrize("size", [0, 5, 90])
def test_a_row_that_was_cut_short_is_encoded_anew(tmp_path, size):
    policy = Asked()
    on_disk(policy, tmp_path, ("a",))
    file = place(tmp_path, "a", None)
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    on_disk(policy, tmp_path, ("a",))
    assert file.read_bytes() == whole


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ARBOR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ARBOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "arbor"
