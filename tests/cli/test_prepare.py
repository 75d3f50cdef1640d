"""`bench prepare` lists, fetches and checks what a run needs from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from hub_server import HubServer
from huggingface_hub import constants, snapshot_download
from skeleton import INDEX, write_skeleton
from web_server import Reply, WebServer

from bench.models.catalog import MODELS
from bench.models.source import CONFIGURATIONS, resolve_model
from bench.prepare import spoken

SHARDS = "transformer/diffusion_pytorch_model.safetensors.index.json"
VAE = "vae/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"
MODEL = ["prepare", "--model", "someone/model"]
SCORER = """
from rewards.control import Random
from bench.contract import HubFile
class Judge(Random):
    "A scorer with files."
    files = (HubFile(repository="someone/judge", file="judge.pt", size={size}, licence="MIT", restrictions="research"),)
REWARDS = {{"judge": Judge}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_skeleton(tmp_path / "repositories" / "model")
    (made / "flux1-dev.safetensors").write_bytes(bytes(1000))
    (made / "README.md").write_text("# model")
    (made / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(bytes(10))
    return made


@pytest.fixture
def hub(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    with HubServer.hosting() as server, server.pointed(tmp_path / "cache"):
        server.add("someone/model", folder, license="other", license_name="some-licence")
        yield server


def test_a_dry_run_lists_files_sizes_and_the_licence_and_fetches_none(hub, call, tmp_path):
    answer = call([*MODEL, "--dry-run"])

    assert (answer.status, answer.err) == (1, "")
    assert "licence: some-licence" in answer.out
    size = (tmp_path / "repositories" / "model" / VAE).stat().st_size
    assert [line.split() for line in answer.out.splitlines() if VAE in line] == [[str(size), "B", "to", "fetch", VAE]]
    assert "flux1-dev" not in answer.out
    assert "fp16" not in answer.out
    assert answer.out.splitlines()[-1] == "something is missing"
    assert hub.downloads == ["model_index.json", CONFIG]
    assert not any((tmp_path / "cache").rglob("models--*"))


def test_what_a_pipeline_needs_is_fetched_and_nothing_else(hub, call, folder):
    answer = call(MODEL)

    assert (answer.status, answer.err) == (0, "")
    commit = hub_server.commit_of(folder)
    assert f"here, commit {commit}" in answer.out
    assert not {"README.md", "flux1-dev.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"} & {*hub.downloads}
    assert resolve_model("someone/model").revision == commit


def test_what_is_here_is_not_asked_of_the_hub_again(hub, call):
    call(MODEL)
    hub.requests.clear()

    assert call(MODEL).out.splitlines()[-1] == "everything is here"
    assert call([*MODEL, "--dry-run"]).status == 0
    assert hub.requests == []


def test_a_download_that_is_cut_goes_on(hub, call):
    hub.cuts[VAE] = 1
    assert call(MODEL).status == 0
    assert hub.downloads.count(VAE) == 2


def test_after_a_download_that_broke_the_same_command_fetches_the_rest(hub, call):
    hub.sizes[VAE] = 10**6  # what comes is shorter than what was said
    answer = call(MODEL)
    assert answer.status == 1
    assert answer.err.startswith("bench: someone/model cannot be had: ")
    assert "should be of size 1000000" in answer.err
    assert "the same command goes on from here" in answer.err
    assert answer.err.count("\n") == 1
    assert answer.out.splitlines()[-1] == "something is missing"

    hub.sizes.clear()
    (listing,) = Path(constants.HF_HUB_CACHE).rglob("trees/*.json")
    listing.unlink()  # a commit's sizes do not change on a real hub
    hub.downloads.clear()
    assert call(MODEL).status == 0
    assert set(hub.downloads) == {"model_index.json", CONFIG, VAE}


def test_a_file_that_was_cut_short_in_the_cache_is_fetched_anew(hub, call):
    call(MODEL)
    blob = (resolve_model("someone/model").folder / VAE).resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:50])
    hub.downloads.clear()

    assert call(MODEL).status == 0
    assert hub.downloads == ["model_index.json", CONFIG, VAE]
    assert (resolve_model("someone/model").folder / VAE).read_bytes() == whole


@pytest.mark.parametrize("token", [None, hub_server.STRANGER])
def test_a_gated_repository_names_its_licence_and_the_login(call, tmp_path, token):
    with HubServer.hosting() as server, server.pointed(tmp_path / "other", token=token):
        index = json.loads((CONFIGURATIONS / "flux-dev" / "model_index.json").read_text())
        folder = write_skeleton(tmp_path / "repositories" / "flux", index)
        server.add("black-forest-labs/FLUX.1-dev", folder, gated=True)
        listed = call(["prepare", "--model", "flux-dev", "--dry-run"])
        answer = call(["prepare", "--model", "flux-dev"])
    assert listed.status == answer.status == 1
    assert listed.err == ""
    assert VAE in listed.out
    assert "licence: FLUX.1 [dev] non-commercial; gated: accept the licence first; no commercial use" in listed.out
    assert "accept its licence on https://huggingface.co/black-forest-labs/FLUX.1-dev" in answer.err
    assert "`hf auth login`" in answer.err
    assert answer.err.count("\n") == 1


def test_with_access_a_gated_repository_is_fetched(hub, call, folder, monkeypatch):
    hub.add("someone/gated", folder, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    answer = call(["prepare", "--model", "someone/gated"])
    assert answer.status == 0
    assert "gated" in answer.out.splitlines()[1]


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.size])
def test_offline_a_registered_model_is_listed_from_what_is_known(hub, call, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = call(["prepare", "--model", name, "--dry-run"])
    assert answer.status == 1
    assert f"licence: {MODELS[name].licence}" in answer.out
    assert f"about {spoken(MODELS[name].size)}, as far as is known without the hub" in answer.out
    assert "HF_HUB_OFFLINE is set" in answer.err
    assert hub.requests == []


def test_without_a_hub_what_cannot_be_reached_is_said(hub, call, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    answer = call(MODEL)
    assert answer.status == 1
    assert "ConnectError" in answer.err
    assert answer.err.count("\n") == 1


def test_a_revision_that_does_not_exist_is_told_with_those_that_do(hub, call, folder, tmp_path):
    other = write_skeleton(tmp_path / "repositories" / "next", sharded=False)
    hub.add("someone/model", folder, branches={"next": other})
    answer = call(["prepare", "--model", "someone/model@v9"])
    assert (answer.status, answer.err) == (2, "bench: someone/model has no revision 'v9'; it has main, next\n")
    assert call(["prepare", "--model", "someone/model@next"]).status == 0
    assert resolve_model("someone/model@next").revision == hub_server.commit_of(other)


def test_a_repository_that_does_not_exist_is_wrong_input(hub, call):
    answer = call(["prepare", "--model", "someone/else"])
    assert answer.status == 2
    assert "the hub has no model someone/else" in answer.err


def test_a_repository_of_another_family_is_refused_after_its_index_alone(hub, call, tmp_path):
    xl = write_skeleton(tmp_path / "repositories" / "xl", INDEX | {"_class_name": "StableDiffusionXLPipeline"})
    hub.add("someone/xl", xl)
    answer = call(["prepare", "--model", "someone/xl"])
    assert answer.status == 2
    assert "is a StableDiffusionXLPipeline" in answer.err
    assert hub.downloads == ["model_index.json"]


def wan(folder: Path, **changes: object) -> Path:
    return write_skeleton(folder, INDEX | {"_class_name": "WanPipeline"} | changes)


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_pipeline_that_no_adapter_drives_is_refused_after_its_index_alone(hub, call, tmp_path, words):
    hub.add("someone/wan", wan(tmp_path / "repositories" / "wan", boundary_ratio=0.875))
    answer = call(["prepare", "--model", "someone/wan", *words])
    assert answer.status == 2
    assert "is of Wan2.2, by its boundary_ratio" in answer.err
    assert answer.err.count("\n") == 1
    assert hub.downloads == ["model_index.json"]


def test_a_transformer_that_no_adapter_drives_is_refused_after_its_configuration(hub, call, tmp_path):
    folder = wan(tmp_path / "repositories" / "wan")
    (folder / CONFIG).write_text('{"pos_embed_seq_len": 514}')
    hub.add("someone/wan", folder)
    answer = call(["prepare", "--model", "someone/wan"])
    assert answer.status == 2
    assert "starts from a first and a last frame" in answer.err
    assert hub.downloads == ["model_index.json", CONFIG]


def test_what_is_here_and_no_adapter_drives_is_refused(hub, call, tmp_path):
    hub.add("someone/wan", wan(tmp_path / "repositories" / "wan", expand_timesteps=True))
    snapshot_download("someone/wan")
    hub.requests.clear()
    answer = call(["prepare", "--model", "someone/wan"])
    assert answer.status == 2
    assert "is of Wan2.2, by its expand_timesteps" in answer.err
    assert "here" not in answer.out
    assert hub.requests == []


@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", SHARDS])
def test_a_snapshot_without_a_file_that_its_parts_read_is_not_whole(hub, call, file):
    snapshot_download("someone/model", ignore_patterns=[file])
    hub.downloads.clear()
    listed = call([*MODEL, "--dry-run"])
    assert listed.status == 1
    assert [line.split()[-1] for line in listed.out.splitlines() if "to fetch  " in line] == [file]
    assert call(MODEL).out.splitlines()[-1] == "everything is here"
    assert (resolve_model("someone/model").folder / file).is_file()


def test_an_index_that_is_damaged_in_the_cache_is_fetched_anew(hub, call):
    here = Path(snapshot_download("someone/model"))
    (here / "model_index.json").resolve().write_text("{")
    assert call(MODEL).out.splitlines()[-1] == "everything is here"
    assert json.loads((here / "model_index.json").read_text()) == INDEX


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("tokenizer/tokenizer.json", "tokenizer has no vocabulary (tokenizer.json)"),
        (SHARDS, "transformer has shards without their index (diffusion_pytorch_model.safetensors.index.json)"),
    ],
)
def test_a_repository_that_lacks_what_its_parts_read_is_refused_before_it_is_fetched(hub, call, folder, file, said):
    (folder / file).rename(folder / "tokenizer" / "README.md")
    answer = call(MODEL)
    assert (answer.status, answer.err) == (
        2,
        f"bench: someone/model is not complete: {said}; give another repository\n",
    )
    assert hub.downloads == ["model_index.json", CONFIG]


def test_files_are_listed_in_order(hub, call, folder):
    files = [line.split()[-1] for line in call([*MODEL, "--dry-run"]).out.splitlines() if "to fetch  " in line]
    assert files[0] == "model_index.json"
    assert len(files) == 11
    assert files[1:] == sorted(files[1:])


def test_weights_that_are_no_safetensors_are_refused(hub, call, folder):
    (folder / VAE).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    answer = call(MODEL)
    assert answer.status == 2
    assert "someone/model has no safetensors of vae" in answer.err


def test_the_embedded_model_needs_nothing(hub, call):
    answer = call(["prepare", "--model", "tiny-flux"])
    assert (answer.status, answer.out) == (0, "everything is here\n")
    assert hub.requests == []


def test_nothing_named_is_wrong_input(call):
    assert "--model, --rewards or --prompts" in call(["prepare"]).err
    assert call(["prepare", "--model", "flux-dve"]).status == 2
    assert "did you mean" in call(["prepare", "--rewards", "sofd"]).err


@pytest.fixture
def judge(tmp_path: Path, hub: HubServer) -> Path:
    made = tmp_path / "repositories" / "judge"
    made.mkdir()
    (made / "judge.pt").write_bytes(bytes(34))
    (made / "other.pt").write_bytes(bytes(34))
    hub.add("someone/judge", made)
    plugin = tmp_path / "judge.py"
    plugin.write_text(SCORER.format(size=34))
    return plugin


def test_a_scorers_files_are_fetched_with_their_licence_said(hub, call, judge):
    words = ["prepare", "--rewards", "random,judge", "--plugin", str(judge)]
    listed = call([*words, "--dry-run"])
    assert listed.status == 1
    assert "licence: MIT; research" in listed.out
    assert hub.downloads == []
    assert call(words).status == 0
    assert hub.downloads == ["judge.pt"]
    assert call([*words, "--dry-run"]).status == 0


def test_a_scorers_file_of_another_size_is_of_another_revision(call, judge):
    judge.write_text(SCORER.format(size=35))
    answer = call(["prepare", "--rewards", "judge", "--plugin", str(judge)])
    assert answer.status == 2
    assert "judge.pt of someone/judge has 34 bytes, and reward judge knows one of 35" in answer.err


def test_a_run_whose_scorer_lacks_a_file_stops_before_work(call, judge, tmp_path):
    words = ["--algos", "dance", "--preset", "smoke", "--rewards", "judge", "--plugin", str(judge)]
    answer = call(["run", *words])
    assert answer.status == 2
    assert "reward 'judge' reads judge.pt" in answer.err
    assert "of someone/judge, which is not on this machine" in answer.err
    assert "`bench prepare --rewards judge`" in answer.err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebServer]:
    monkeypatch.setenv("ARBOR_CACHE", str(tmp_path / "arbor"))
    with WebServer.hosting() as server:
        server.replies["/head.pth"] = Reply(content=bytes(34))
        yield server


def with_head(judge: Path, web: WebServer) -> list[str]:
    """Let the scorer read a file of the web besides; return the command that fetches both."""
    head = f'WebFile(address="{web.url}/head.pth", file="head.pth", size=34, licence="BSD")'
    text = judge.read_text().replace("import HubFile", "import HubFile, WebFile")
    judge.write_text(text.replace('restrictions="research"),)', f'restrictions="research"), {head})'))
    return ["prepare", "--rewards", "judge", "--plugin", str(judge)]


def test_a_scorers_file_of_the_web_is_fetched_with_its_licence_said(hub, call, judge, web, tmp_path):
    words = with_head(judge, web)
    listed = call([*words, "--dry-run"])
    assert listed.status == 1
    assert "licence: BSD" in listed.out
    assert ["34", "B", "to", "fetch", "head.pth"] in [line.split() for line in listed.out.splitlines()]
    assert web.requests == []
    fetched = call(words)
    assert (fetched.status, fetched.err) == (0, "")
    assert (tmp_path / "arbor" / "weights" / "head.pth").read_bytes() == bytes(34)
    web.requests.clear()
    assert call(words).out.splitlines()[-1] == "everything is here"
    assert web.requests == []


def test_a_page_in_place_of_a_file_of_the_web_is_refused_and_the_rest_is_fetched(hub, call, judge, web, tmp_path):
    web.replies["/head.pth"] = Reply(content=b"<html>", kind="text/html")
    answer = call(with_head(judge, web))
    assert answer.status == 1
    assert "a page of HTML in its place" in answer.err
    assert answer.err.count("\n") == 1
    assert answer.out.splitlines()[-1] == "something is missing"
    assert hub.downloads == ["judge.pt"]


def test_offline_a_file_of_the_web_is_listed_and_not_asked_for(hub, call, judge, web, monkeypatch):
    words = with_head(judge, web)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = call(words)
    assert answer.status == 1
    assert f"{web.url}/head.pth cannot be had: HF_HUB_OFFLINE is set" in answer.err
    assert web.requests == []


OTHER_NAMES = 'licence="MIT", instead=("other.pt", "third.pt")'


def test_weights_by_another_name_do_as_well(hub, call, judge, tmp_path):
    (tmp_path / "repositories" / "judge" / "judge.pt").unlink()
    words = ["prepare", "--rewards", "judge", "--plugin", str(judge)]
    judge.write_text(judge.read_text().replace('licence="MIT"', OTHER_NAMES))
    assert call(words).status == 0
    assert hub.downloads == ["other.pt"]
    assert call(words).out.splitlines()[-1] == "everything is here"


def test_a_repository_without_any_of_the_names_is_of_another_revision(call, judge, tmp_path):
    for name in ("judge.pt", "other.pt"):
        (tmp_path / "repositories" / "judge" / name).unlink()
    judge.write_text(judge.read_text().replace('licence="MIT"', OTHER_NAMES))
    answer = call(["prepare", "--rewards", "judge", "--plugin", str(judge)])
    assert answer.status == 2
    assert "has no judge.pt or other.pt or third.pt: reward judge is of another revision" in answer.err


def test_where_a_repository_has_both_names_only_the_first_is_fetched(hub, call, judge):
    judge.write_text(judge.read_text().replace('licence="MIT"', OTHER_NAMES))
    assert call(["prepare", "--rewards", "judge", "--plugin", str(judge)]).status == 0
    assert hub.downloads == ["judge.pt"]


@pytest.mark.parametrize(("name", "fetched"), [("other.pt", ["judge.pt", "other.pt"]), ("none.pt", ["judge.pt"])])
def test_an_optional_file_is_fetched_where_there_is_one(hub, call, judge, tmp_path, name, fetched):
    (tmp_path / "repositories" / "judge" / "other.pt").write_bytes(b"other")
    more = f'HubFile(repository="someone/judge", file="{name}", size=0, licence="", optional=True)'
    judge.write_text(judge.read_text().replace('restrictions="research"),)', f'restrictions="research"), {more})'))
    words = ["prepare", "--rewards", "judge", "--plugin", str(judge)]
    assert call(words).status == 0
    assert sorted(hub.downloads) == fetched
    assert call(words).out.splitlines()[-1] == "everything is here"


def test_prompts_of_the_hub_are_fetched_and_read(hub, call, tmp_path, monkeypatch):
    made = tmp_path / "repositories" / "prompts"
    made.mkdir()
    for split in ("train", "test"):
        rows = [json.dumps({"prompt": f"{split} picture {n}"}) for n in range(60)]
        (made / f"{split}.jsonl").write_text("\n".join(rows))
    (made / "pictures.zip").write_bytes(bytes(10))
    hub.add("someone/prompts", made, kind="datasets", license="mit")
    words = ["prepare", "--prompts", "hub:someone/prompts"]

    listed = call([*words, "--dry-run"])
    assert (listed.status, hub.downloads) == (1, [])
    assert "test.jsonl" in listed.out
    assert "pictures" not in listed.out
    assert "licence: mit" in listed.out
    assert call(words).status == 0
    assert sorted(hub.downloads) == ["test.jsonl", "train.jsonl"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert call(words).status == 0


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.size])
def test_a_model_that_is_not_here_runs_dry_with_random_weights(call, files, hub, name):
    words = ["run", "--algos", "dance", "--model", name, "--set", "model.weights=random", "--rewards", "random"]
    if MODELS[name].frames > 1:
        pytest.skip("there is no scorer of videos yet")
    answer = call([*words, "--prompts", str(files / "prompts.txt"), "--dry-run"])
    assert (answer.status, answer.err) == (0, "")
    assert hub.requests == []
    assert (CONFIGURATIONS / name).is_dir()
