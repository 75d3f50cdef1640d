"""Scorers by what is written: their options, labels, and what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pytest

from bench.contract import HubFile, RewardInfo, UnavailableError, means
from bench.registry import InputError, Registry, load
from bench.scorers import lookup

INFO = RewardInfo(unit="one", low=0.0, high=1.0, higher_is_better=True, revision="7", reference="a test")


class Plain:
    """A scorer without options."""

    info = INFO


@dataclass(frozen=True, kw_only=True)
class Optioned:
    """A scorer with options."""

    scale: Literal["cosine", "logit"] = "cosine"
    smooth: bool = True
    times: int = 1
    weights: str = means("")

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times={self.times}: 1 or more is wanted")

    @property
    def info(self) -> RewardInfo:
        return INFO


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A scorer whose first option is wanted, and says what it is."""

    url: str = means(...)
    token: str = means("")

    def __post_init__(self) -> None:
        if self.url is ...:
            raise TypeError("url is wanted")

    @property
    def label(self) -> str:
        return "remote-hps"

    @property
    def info(self) -> RewardInfo:
        if "down" in self.url:
            raise UnavailableError(f"{self.url} does not answer: start it")
        return INFO


@dataclass(frozen=True, kw_only=True)
class Wanting:
    """A scorer with an option without a default."""

    path: str

    @property
    def info(self) -> RewardInfo:
        return INFO


KINDS = {"plain": Plain, "optioned": Optioned, "remote": Remote, "wanting": Wanting}
REGISTRY = Registry(kind="rewards", values=KINDS, origins={}, broken={})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("plain", "plain"),
        ("optioned", "optioned"),
        ("optioned()", "optioned"),
        ("optioned(scale=cosine)", "optioned"),
        ("optioned(scale=logit)", "optioned(scale=logit)"),
        ("optioned(logit)", "optioned(scale=logit)"),
        ("optioned(smooth=false,scale=logit)", "optioned(scale=logit,smooth=false)"),
        ("optioned(times=3, weights=/some/where)", "optioned(times=3)"),
        ("optioned(weights=/some/where)", "optioned"),
        ("remote(http://127.0.0.1:80)", "remote-hps"),
        ("remote(url=http://127.0.0.1:80,token=a)", "remote-hps"),
    ],
)
def test_a_label_is_the_name_with_the_options_that_move_scores(text, label):
    assert lookup.label(text, lookup.looked_at(text, REGISTRY)) == label


def test_an_address_alone_is_the_first_option_even_with_signs_in_it():
    assert lookup.looked_at("remote(http://127.0.0.1:80/a?b=c)", REGISTRY).url == "http://127.0.0.1:80/a?b=c"


def test_options_are_typed():
    found = lookup.looked_at("optioned(times=3,smooth=false,weights=b)", REGISTRY)
    assert (found.times, found.smooth, found.weights) == (3, False, "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plane", "did you mean"),
        ("plain(a=1)", "plain takes no options"),
        ("optioned(scal=logit)", "optioned has no option 'scal'; it has scale, smooth, times, weights"),
        ("optioned(scale=logits)", "is not a choice"),
        ("optioned(times=many)", "a whole number is wanted"),
        ("optioned(times=0)", "1 or more is wanted"),
        ("optioned(smooth=1)", "true or false is wanted"),
        ("optioned(times=1,times=2)", "times"),
        ("optioned(times=1", "optioned"),
        ("wanting", "lacks an option: path"),
        ("remote(http://down)", "http://down does not answer: start it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_it(text, said):
    with pytest.raises(InputError, match=re.escape(said)) as told:
        lookup.looked_at(text, REGISTRY)
    assert "\n" not in str(told.value)


def test_weights_of_a_run_stand_behind_the_label():
    found, labelled = lookup.named(["optioned(scale=logit,weights=/a):0.7", "plain:0.3", "optioned"], REGISTRY)
    assert labelled == ["optioned(scale=logit):0.7", "plain:0.3", "optioned"]
    assert dict(found.written) == {"optioned(scale=logit)": "optioned(scale=logit,weights=/a)"}
    assert found["plain"] is Plain
    assert found.revisions() == ("optioned(scale=logit)@7", "plain@7", "optioned@7")


@pytest.mark.parametrize("texts", [["optioned", "optioned(weights=/a)"], ["optioned(weights=/a)", "optioned"]])
def test_a_bare_label_means_the_scorer_whose_folder_is_written_elsewhere(texts):
    found, labelled = lookup.named(texts, REGISTRY)
    assert labelled == ["optioned", "optioned"]
    assert dict(found.written) == {"optioned": "optioned(weights=/a)"}
    assert found["optioned"].weights == "/a"


def test_two_texts_of_one_label_are_refused():
    with pytest.raises(InputError, match=r"are both 'optioned' in records; name one of them"):
        lookup.named(["optioned(weights=/b)", "optioned(weights=/a)"], REGISTRY)
    assert lookup.named(["optioned", "optioned:0.5"], REGISTRY)[1] == ["optioned", "optioned:0.5"]


def test_a_scorer_is_ready_once_it_has_loaded():
    loaded = []

    @dataclass(frozen=True, kw_only=True)
    class Heavy(Optioned):
        def load(self) -> None:
            loaded.append(self.scale)

    assert isinstance(lookup.ready(Plain), Plain)
    assert lookup.ready(Heavy(scale="logit")).scale == "logit"
    assert loaded == ["logit"]


@dataclass(frozen=True, kw_only=True)
class Filed(Optioned):
    """A scorer of a file and a package."""

    files = (HubFile(repository="a/b", file="sub/w.pt", size=3, licence="MIT"),)
    packages = ("json",)


def test_what_is_not_on_this_machine_is_said_before_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"reward 'f' reads w\.pt \(3 B\) of a/b.*`bench prepare --rewards f`"):
        lookup.check_here({"f": Filed()})
    with pytest.raises(InputError, match="is no folder"):
        lookup.check_here({"f": Filed(weights=str(tmp_path / "none"))})
    (tmp_path / "w.pt").write_bytes(b"123")
    lookup.check_here({"f": Filed(weights=str(tmp_path)), "p": Plain})
    monkeypatch.setattr(Filed, "packages", ("json", "no_such_package"))
    with pytest.raises(InputError, match=r"needs no_such_package: pip install 'arbor-bench\[rewards\]' brings it"):
        lookup.check_here({"f": Filed(weights=str(tmp_path))})


def test_a_list_shows_unit_range_and_options():
    assert lookup.spoken(Plain) == " [one, 0 to 1]"
    assert lookup.spoken(Optioned) == " [one, 0 to 1] (scale, smooth, times, weights)"
    assert lookup.spoken(Remote) == " (url, token)"


def test_the_shipped_scorers_are_looked_at_without_their_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    registry = load("rewards", [])
    for text in ("hpsv2.1", "pickscore(scale=logit)", "clip(hf-hub:a/b)", "aesthetic", "jpeg-compressibility(60)"):
        found = lookup.looked_at(text, registry)
        assert isinstance(found.info, RewardInfo)
    assert lookup.label("clip", lookup.looked_at("clip(model=ViT-B-32:laion2b_s34b_b79k)", registry)) == (
        "clip(model=ViT-B-32:laion2b_s34b_b79k)"
    )


def test_empty_brackets_and_options_without_a_value_mean_nothing_else():
    assert lookup.label("plain()", lookup.looked_at("plain()", REGISTRY)) == "plain"
    for text in ("optioned(weights=)", "optioned(weights=~)"):
        with pytest.raises(InputError, match="weights has no value"):
            lookup.looked_at(text, REGISTRY)


def test_memory_is_of_all_scorers_but_what_they_share():
    class Heavy:
        memory = 5

    class Shared(Heavy):
        shares = ("one model",)

    assert lookup.memory({"a": Heavy(), "b": Heavy(), "c": Shared(), "d": Shared(), "plain": Plain}) == 15.0


def test_the_registered_scorers_of_published_weights_know_their_memory():
    names = ["hpsv2.1", "pickscore", "imagereward"]
    held = lookup.memory({name: lookup.looked_at(name, load("rewards")) for name in names})
    assert 9.6e9 < held < 9.8e9


def test_a_server_that_serves_another_revision_than_the_run_began_with_is_away():
    scorer = lookup.looked_at("remote(there)", REGISTRY)
    lookup.check_same("remote-hps", "remote(there)", scorer, ("remote-hps@7", "plain@7"))
    lookup.check_same("remote-hps", "remote(there)", scorer, ())
    with pytest.raises(UnavailableError, match="serves remote-hps@7 now, and this run began with remote-hps@6"):
        lookup.check_same("remote-hps", "remote(there)", scorer, ("remote-hps@6",))
