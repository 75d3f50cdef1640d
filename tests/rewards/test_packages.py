"""The packages' worker and environments, with fake packages: neither hpsv2 nor image-reward is here."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import zlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from bench.contract import RewardInfo
from rewards import parity
from rewards.packages import WORKER, __main__, python_of
from rewards.remote import Remote

TORCH = """
from contextlib import nullcontext as no_grad
def load(path, map_location=None, weights_only=False):
    print("reads", str(path).rpartition("/")[2], weights_only)
    return {"state_dict": {"weight": 1.0}}
"""
IMG_SCORE = """
import torch
from turtle import forward
from hpsv2.src.open_clip import factory
create_model_and_transforms = factory.create_model_and_transforms
model_dict = {}
def initialize_model():
    if not model_dict:
        model, _, _ = create_model_and_transforms("ViT-H-14", "laion2B-s32B-b79K", precision="amp")
        model_dict["model"] = model
def get_tokenizer(name):
    return lambda texts: Ids([[49406, *map(ord, text), 49407] for text in texts])
class Ids(list):
    def tolist(self):
        return list(self)
def score(images, prompt, cp=None, hps_version="v2.0"):
    initialize_model()
    model_dict["model"].load_state_dict(torch.load(cp)["state_dict"])
    print("scores", prompt)
    if prompt == "raises":
        raise RuntimeError("the package's\\nown words")
    if prompt == "nan":
        return [float("nan") for _ in images]
    return [model_dict["model"].weight * image.getpixel((0, 0))[0] / 255 + len(prompt) for image in images]
"""
FACTORY = """
_MODEL_CONFIGS = {}
class Model:
    def load_state_dict(self, state):
        self.weight = state["weight"]
def create_model_and_transforms(name, pretrained, **rest):
    if pretrained:
        raise OSError("this would fetch 3.9 GB")
    print("builds", _MODEL_CONFIGS.get(name), rest)
    return Model(), None, None
"""
UTILS = """
import torch
from ImageReward.models.BLIP import blip
class ImageReward:
    def __init__(self, med_config):
        self.blip = self
        self.tokenizer = blip.BertTokenizer.from_pretrained("bert-base-uncased")
    def load_state_dict(self, state, strict):
        print("strict", strict)
    def score(self, prompt, images):
        return [len(prompt) + image.width / 100 for image in images] if isinstance(images, list) else images.width / 100
def load(name, med_config=None):
    state = torch.load(name)
    model = ImageReward(med_config)
    model.load_state_dict(state, strict=False)
    return model
"""
BLIP = """
class BertTokenizer:
    def __init__(self, file):
        self.first = open(file).readline().strip()
    def __call__(self, texts, padding, truncation, max_length):
        return {"input_ids": [[max_length, len(text)] for text in texts]}
    @classmethod
    def from_pretrained(cls, name):
        raise OSError("this would ask the hub")
"""
VIT = """
class VisionTransformer:
    def __init__(self, **sizes):
        print("vision", sizes)
"""
REWARD = """
def MLP(width):
    print("head", width)
"""
FAKES = {
    "torch.py": TORCH,
    "hpsv2/__init__.py": "",
    "hpsv2/img_score.py": IMG_SCORE,
    "hpsv2/src/__init__.py": "",
    "hpsv2/src/open_clip/__init__.py": "",
    "hpsv2/src/open_clip/factory.py": FACTORY,
    "hpsv2-1.2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hpsv2\nVersion: 1.2.0\n",
    "ImageReward/__init__.py": "",
    "ImageReward/utils.py": UTILS,
    "ImageReward/models/__init__.py": "",
    "ImageReward/models/BLIP/__init__.py": "",
    "ImageReward/models/BLIP/blip.py": BLIP,
    "ImageReward/models/BLIP/blip_pretrain.py": "create_vit = None",
    "ImageReward/models/BLIP/vit.py": VIT,
    "ImageReward/ImageReward.py": REWARD,
    "image_reward-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: image-reward\nVersion: 1.5\n",
}
FILES = {"hpsv2": ["HPS_v2.1_compressed.pt"], "image-reward": ["ImageReward.pt", "med_config.json", "vocab.txt"]}
WHITE = {"dtype": "uint8", "shape": [1, 2, 3], "raw": base64.b64encode(b"\xff" * 6).decode()}
BLACK = {"dtype": "uint8", "shape": [2, 1, 3], "raw": base64.b64encode(b"\x00" * 6).decode()}


def _environment(folder, fakes):
    """Write an interpreter that finds the fakes before all else, and return its environment's folder."""
    for name, text in fakes.items():
        (folder / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "site" / name).write_text(text)
    python = python_of(folder)
    python.parent.mkdir(parents=True, exist_ok=True)
    words = [f"PYTHONPATH={folder / 'site'}", f"ARBOR_TOKEN={folder.name if 'token' in folder.name else ''}"]
    python.write_text(f'#!/bin/sh\nexec env {shlex.join([*words, sys.executable])} "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return _environment(tmp_path_factory.mktemp("environment"), FAKES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in [name for names in FILES.values() for name in names]:
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module")
def hpsv2(environment, weights):
    with parity.running("hpsv2", python_of(environment), weights) as url:
        yield url


@pytest.fixture(scope="module")
def reward(environment, weights):
    with parity.running("image-reward", python_of(environment), weights) as url:
        yield url


def _post(url, body, path="/score", **headers):
    """Return status and answer."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, headers)
    answer = connection.getresponse()
    return answer.status, json.load(answer)


def _scored(url, body):
    status, answer = _post(url, body)
    assert (status, answer["failures"]) == (200, [])
    return answer["scores"]


def _said(status_and_answer):
    status, answer = status_and_answer
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]
    return status, answer["error"]


def _png(mode="RGB", size=(3, 2), kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, size, 255 if mode == "L" else None).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def test_a_worker_says_that_it_is_well_and_what_its_numbers_mean(hpsv2, reward):
    for url, name, unit, version in (
        (hpsv2, "hpsv2-package", "cosine", "1.2.0+"),
        (reward, "image-reward-package", "standard deviations", "1.5+"),
    ):
        assert parity.asked(url, "/health") == {"status": "ok", "protocol": 1}
        told = parity.asked(url, "/info")
        assert set(told) == {"protocol", "name", "info", "max_items", "max_bytes"}
        assert (told["protocol"], told["name"]) == (1, name)
        info = RewardInfo(**told["info"])
        assert set(told["info"]) == {field.name for field in fields(RewardInfo)}
        assert (info.unit, info.pixels, info.media) == (unit, "uint8", "image")
        assert info.revision.startswith(version)
        assert len(info.revision) == len(version) + 12


def test_scores_come_in_the_order_of_the_images_whatever_their_prompts(hpsv2, reward):
    body = {"prompts": ["abc", "a", "abc"], "images": [WHITE, BLACK, BLACK], "group": [0, 1, 0]}
    assert _scored(hpsv2, body) == [4.0, 1.0, 3.0]
    assert _scored(reward, body) == [3.02, 0.01, 3.01]


def test_a_worker_is_a_remote_scorer(hpsv2, reward):
    images, group = torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 3, 4, 5), np.array([0, 1])
    for url, name, scores in ((hpsv2, "hpsv2-package", [4.0, 1.0]), (reward, "image-reward-package", [0.05, 0.05])):
        scorer = Remote(url=url, timeout=10.0, patience=0.0)
        assert scorer.label == name
        assert scorer(images, ["abc", "a"], group).tolist() == scores


def test_png_jpeg_and_raw_images_are_one(hpsv2):
    images = [{"png": _png()}, {"jpeg": _png(kind="JPEG")}, {**BLACK, "shape": [1, 2, 3]}]
    assert _scored(hpsv2, {"prompts": ["", "", ""], "images": images}) == [0.0] * 3


def test_token_ids_are_the_packages(hpsv2, reward):
    assert _post(hpsv2, {"prompts": ["a"]}, "/tokens") == (200, {"ids": [[49406, 97, 49407]]})
    assert _post(reward, {"prompts": ["a", "bc"]}, "/tokens") == (200, {"ids": [[35, 1], [35, 2]]})


def test_what_is_no_number_is_null_and_named(hpsv2):
    status, answer = _post(hpsv2, {"prompts": ["nan", "a"], "images": [WHITE, BLACK]})
    assert status == 200
    assert answer["scores"] == [None, 1.0]
    assert answer["failures"] == ["image 0: the package gave no finite number"]


def test_an_image_that_the_package_cannot_score_fails_alone(hpsv2):
    status, answer = _post(hpsv2, {"prompts": ["raises", "a", "raises"], "images": [WHITE, BLACK, WHITE]})
    assert (status, answer["scores"]) == (200, [None, 1.0, None])
    assert answer["failures"] == [f"image {row}: RuntimeError: the package's own words" for row in (0, 2)]


def test_the_packages_error_is_one_line_and_the_worker_goes_on(hpsv2):
    body = {"prompts": ["raises"], "images": [WHITE]}
    assert _said(_post(hpsv2, body)) == (422, "image 0: RuntimeError: the package's own words")
    assert parity.asked(hpsv2, "/health")["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "no JSON"),
        (b"\x80\x04K\x01.", 400, "no JSON"),
        ([], 400, "'prompts'"),
        ({"prompts": [], "images": []}, 400, "'prompts'"),
        ({"prompts": [1], "images": [WHITE]}, 400, "'prompts'"),
        ({"prompts": ["a"] * 257, "images": [WHITE] * 257}, 413, "at most 256"),
        ({"prompts": ["a"]}, 400, "'images' must be a list of 1"),
        ({"prompts": ["a"], "images": [WHITE, WHITE]}, 400, "list of 1"),
        ({"prompts": ["a"], "images": ["x"]}, 400, "an object with one of"),
        ({"prompts": ["a"], "images": [{"png": "?"}]}, 400, "not base64"),
        ({"prompts": ["a"], "images": [{"png": "AAAA"}]}, 400, "no png"),
        ({"prompts": ["a"], "images": [{"png": _png(kind="JPEG")}]}, 400, "no png"),
        ({"prompts": ["a"], "images": [{"png": _png("RGBA")}]}, 422, "not RGBA of 3 x 2"),
        ({"prompts": ["a"], "images": [{**WHITE, "dtype": "float32"}]}, 422, "8-bit"),
        ({"prompts": ["a"], "images": [{**WHITE, "shape": [1, 2]}]}, 400, "'shape'"),
        ({"prompts": ["a"], "images": [{**WHITE, "shape": [10**6, 10**6, 3]}]}, 400, "6 bytes are no image"),
        ({"prompts": ["a"], "images": [{**WHITE, "shape": [2, 1, 4]}]}, 400, "are no image"),
        ({"prompts": ["a"], "videos": [[WHITE]]}, 422, "scores images, not videos"),
    ],
)
def test_a_wrong_request_is_told_why(hpsv2, body, status, said):
    found, why = _said(_post(hpsv2, body))
    assert (found, said in why) == (status, True), why


def test_a_png_that_claims_a_billion_pixels_is_not_decoded(hpsv2):
    data = bytearray(base64.b64decode(_png()))
    data[16:24] = (40000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    status, why = _said(_post(hpsv2, {"prompts": ["a"], "images": [{"png": base64.b64encode(data).decode()}]}))
    assert status in (400, 422)
    assert "pixels" in why


def test_an_unknown_path_and_method_are_told(hpsv2):
    assert _said(_post(hpsv2, {}, "/scores")) == (404, "there are /score, /tokens here, and no /scores")
    with pytest.raises(RuntimeError, match=r"404: .*there are /health, /info here"):
        parity.asked(hpsv2, "/")


def _sent_by_hand(url, head):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(head.encode())
        return wire.makefile("rb").readline().decode()


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(hpsv2):
    head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    assert " 413 " in _sent_by_hand(hpsv2, head)


@pytest.mark.parametrize("length", ["", "Content-Length: -1\r\n", "Content-Length: many\r\n"])
def test_a_body_without_a_length_is_refused(hpsv2, length):
    assert " 411 " in _sent_by_hand(hpsv2, f"POST /score HTTP/1.1\r\nHost: x\r\n{length}\r\n")


def test_a_token_is_wanted_where_the_worker_was_started_with_one(tmp_path, weights):
    folder = _environment(tmp_path / "token-of-mine", FAKES)
    with parity.running("hpsv2", python_of(folder), weights) as url:
        assert parity.asked(url, "/health")["status"] == "ok"
        body = {"prompts": [""], "images": [WHITE]}
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "token-of-mine"}):
            assert _said(_post(url, body, **headers))[0] == 401
        assert _post(url, body, Authorization="Bearer token-of-mine")[0] == 200


def _end(python, weights, package="hpsv2", *words):
    """Return how a worker ends that does not start."""
    command = [str(python), str(WORKER), "--package", package, "--weights", str(weights), *words]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)


def test_hpsv2_reads_its_checkpoint_once_fetches_nothing_and_needs_no_tk(environment, weights):
    (environment / "site" / "turtle.py").write_text("import tkinter_that_is_not_there\n")
    try:
        command = [str(python_of(environment)), str(WORKER), "--package", "hpsv2", "--weights", str(weights)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            url = process.stdout.readline().split()[-1]
            for prompt in ("a", "b", "a"):
                assert _post(url, {"prompts": [prompt], "images": [WHITE]})[1]["scores"] == [2.0]
            process.terminate()
            said = process.stdout.read() + process.stderr.read()
    finally:
        (environment / "site" / "turtle.py").unlink()
    assert said.count("reads HPS_v2.1_compressed.pt True") == 1
    assert "builds None {'precision': 'amp'}" in said


def test_hpsv2_takes_the_sizes_of_a_tiny_checkpoint(environment, weights):
    sizes = weights / "open_clip_config.json"
    sizes.write_text(json.dumps({"model_cfg": {"embed_dim": 4}}))
    try:
        with parity.running("hpsv2", python_of(environment), weights) as url:
            assert _post(url, {"prompts": ["a"], "images": [WHITE]})[0] == 200
    finally:
        sizes.unlink()


def test_image_reward_loads_strictly_and_tensors_alone(environment, weights):
    command = [str(python_of(environment)), str(WORKER), "--package", "image-reward", "--weights", str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "image-reward-package listens on http://127.0.0.1:" in process.stdout.readline()
        process.terminate()
        said = process.stderr.read()
    assert said.count("reads ImageReward.pt True") == 1
    assert "strict True" in said


def test_image_reward_takes_the_sizes_of_a_tiny_checkpoint(environment, tmp_path):
    parity.write("image-reward", tmp_path, tiny=True)
    command = [str(python_of(environment)), str(WORKER), "--package", "image-reward", "--weights", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.terminate()
        said = process.stderr.read()
    assert "vision {'img_size': 224, 'patch_size': 32, 'embed_dim': 24, 'depth': 2, 'num_heads': 4}" in said


@pytest.mark.parametrize("package", FILES)
def test_missing_weights_are_named(environment, package, tmp_path):
    ended = _end(python_of(environment), tmp_path, package)
    assert ended.returncode == 2
    assert ended.stderr.strip().endswith(
        f"{tmp_path} has no {FILES[package][0]}: `--weights` names a folder with {', '.join(FILES[package])}"
    )


def test_an_environment_without_the_package_names_the_command_that_makes_one(tmp_path, weights):
    folder = _environment(tmp_path, {"torch.py": TORCH})
    ended = _end(python_of(folder), weights)
    assert ended.returncode == 2
    assert "No module named 'hpsv2'" in ended.stderr
    assert "`python -m rewards.packages hpsv2 DIR` makes an environment" in ended.stderr
    starting = parity.running("hpsv2", python_of(folder), weights)
    with (
        pytest.raises(RuntimeError, match=r"the worker of hpsv2 does not start by .*No module named 'hpsv2'"),
        starting,
    ):
        pass


def test_the_vocabulary_that_the_wheel_lacks_is_named(tmp_path, weights):
    broken = {**FAKES, "hpsv2/img_score.py": "open('/nowhere/bpe_simple_vocab_16e6.txt.gz')"}
    ended = _end(python_of(_environment(tmp_path, broken)), weights)
    assert ended.returncode == 2
    assert "bpe_simple_vocab_16e6.txt.gz is missing, which the package's wheel lacks" in ended.stderr


def test_check_says_the_version_alone(environment, tmp_path):
    ended = _end(python_of(environment), tmp_path, "hpsv2", "--check")
    assert (ended.returncode, ended.stdout) == (0, "hpsv2 1.2.0\n")


class Commands:
    """Stands for the commands that make an environment."""

    def __init__(self, site, version="3 11"):
        self.site, self.version, self.run = site, version, []

    def __call__(self, command):
        self.run.append(list(command))
        return self.version if "version_info" in command[-1] else f"{self.site}\n"


@pytest.fixture
def site(tmp_path):
    for folder in ("open_clip", "hpsv2/src/open_clip"):
        (tmp_path / "site" / folder).mkdir(parents=True)
    (tmp_path / "site" / "open_clip" / __main__.VOCABULARY).write_text("words")
    return tmp_path / "site"


@pytest.mark.parametrize("uv", ["", "/bin/uv"])
def test_an_environment_is_made_by_uv_or_without_it(site, tmp_path, uv):
    commands, folder = Commands(site), tmp_path / "made"
    __main__.make("hpsv2", folder, "/bin/python3.11", uv=uv, run=commands)
    made = [["/bin/uv", "venv", "--python", "/bin/python3.11", str(folder)]] if uv else []
    assert commands.run[1:2] == made or [["/bin/python3.11", "-m", "venv", str(folder)]]
    pins = ["-r", str(WORKER.parent / "hpsv2.txt")]
    inside = str(python_of(folder))
    install = ["/bin/uv", "pip", "install", "--python", inside] if uv else [inside, "-m", "pip", "install"]
    assert commands.run[2] == [*install, *pins]
    assert commands.run[-1] == [inside, str(WORKER), "--package", "hpsv2", "--check"]
    assert (site / "hpsv2" / "src" / "open_clip" / __main__.VOCABULARY).read_text() == "words"


@pytest.mark.parametrize("package", FILES)
def test_an_environment_is_pinned(package):
    lines = (WORKER.parent / f"{package}.txt").read_text().splitlines()
    pins = [line.partition("#")[0].strip() for line in lines if not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert {"hpsv2": "hpsv2==1.2.0", "image-reward": "image-reward==1.5"}[package] in pins


def test_an_environment_is_not_made_where_something_is_or_of_another_python(site, tmp_path):
    with pytest.raises(ValueError, match="not an empty folder"):
        __main__.make("hpsv2", site, "python", run=Commands(site))
    with pytest.raises(ValueError, match=r"Python 3.13: name one of 3.11 to 3.12 by --python FILE"):
        __main__.make("hpsv2", tmp_path / "made", "python", run=Commands(site, "3 13"))


def test_a_wrong_folder_is_wrong_input(site, capsys):
    assert __main__.main(["hpsv2", str(site)]) == 2
    assert "name another" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["clip", "DIR"])


def _scores(values, ids=((1, 2),)):
    return parity.Scores(version="1", ids=[list(row) for row in ids], values=np.array(values, dtype=np.float64))


def test_a_comparison_holds_within_a_millionth():
    row = parity.compared("hpsv2", _scores([[0.1, 0.2, 0.3]]), _scores([[0.1, 0.2 + 9e-7, 0.3]]))
    assert row.holds
    assert row.package == "hpsv2 1"
    assert row.difference == pytest.approx(9e-7, rel=1e-3)
    assert (row.count, row.spread) == (3, pytest.approx(0.2))
    assert parity.table([row]).splitlines()[1].split() == [
        "hpsv2",
        "1",
        "3",
        "2.00e-01",
        "9.00e-07",
        *["equal"] * 2,
        "ok",
    ]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (_scores([[0.1, 0.2]]), _scores([[0.1, 0.2 + 2e-6]])),
        (_scores([[0.1, 0.2]]), _scores([[0.1, np.nan]])),
        (_scores([[0.1, 0.2]]), _scores([[0.1, 0.2]], ids=((1, 3),))),
        (_scores([[0.1, 0.1 + 2e-7]]), _scores([[0.1 + 2e-7, 0.1]])),
    ],
)
def test_a_comparison_fails_by_difference_failed_score_tokens_or_order(here, there):
    row = parity.compared("hpsv2", here, there)
    assert not row.holds
    assert "FAILED" in parity.table([row])


def test_pictures_are_of_odd_sizes_and_have_all_colours():
    images = parity.pictures()
    assert [tuple(image.shape[1:]) for image in images] == list(parity.SIZES)
    assert all(image.float().std() > 40 for image in images)


@pytest.mark.slow
@pytest.mark.parametrize("package", FILES)
def test_parity_with_another_model_fails(environment, capsys, package):
    """The fake packages score by the length of a prompt."""
    assert parity.main(["--env", f"{package}={environment}", "--tiny"]) == 1
    said = capsys.readouterr().out
    assert "7 prompts, 5 images" in said
    assert "DIFFERENT" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "clip=."], "PACKAGE=DIR is wanted, of hpsv2 or image-reward"),
        (["--env", "hpsv2"], "PACKAGE=DIR is wanted"),
        (["--env", "hpsv2=nowhere"], "and a folder"),
        (["--env", "hpsv2=."], "no environment is there; `python -m rewards.packages hpsv2 .` makes one"),
    ],
)
def test_parity_wants_environments(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        parity.main(words)
    assert said in capsys.readouterr().err


def test_our_side_scores_each_prompt_on_each_image(tmp_path):
    parity.write("image-reward", tmp_path, tiny=True)
    images = parity.pictures()[:2]
    found = parity.ours("image-reward", tmp_path, images)
    assert found.values.shape == (len(parity.PROMPTS), 2)
    assert len(found.ids) == len(parity.PROMPTS)
    assert {len(row) for row in found.ids} == {35}
    assert np.isfinite(found.values).all()
