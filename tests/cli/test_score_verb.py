import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.embedded import world
from bench.embedded.training import seeded
from bench.scorers import tiny as tiny_scorers
from rewards.hpsv2 import HPSv2
from rewards.shapes import Soft

PROMPTS = ("a red circle", "a blue square", "a red circle", "two red circles", "a green triangle")


def pictures(seed=0):
    """8-bit images of the prompts, [picture, height, width, 3]."""
    rng = seeded(seed)[0]
    images = world.render([world.draw(world.parse(prompt), rng) for prompt in PROMPTS])
    return (images.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def as_scorer_sees(pixels):
    return torch.tensor(pixels).movedim(-1, -3).float() / 255


@pytest.fixture
def folder(tmp_path):
    """Five images with their prompts beside."""
    place = tmp_path / "pictures"
    place.mkdir()
    for at, (pixels, prompt) in enumerate(zip(pictures(), PROMPTS, strict=True)):
        Image.fromarray(pixels).save(place / f"{at}.png")
        (place / f"{at}.txt").write_text(prompt + "\n")
    return place


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("hps")
    tiny_scorers.make("hpsv2.1", place)
    return place


def rows(path: Path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_have_the_scores_of_their_images_in_csv_and_json(call, folder, tiny, tmp_path):
    answer = call(["score", "--rewards", f"soft,hpsv2.1(weights={tiny})", "pictures"])
    assert answer.status == 0, answer.err
    scorer = HPSv2(weights=str(tiny))
    scorer.load()
    images, group = as_scorer_sees(pictures()), np.arange(5)
    written = rows(tmp_path / "scores.csv")
    assert [row["prompt"] for row in written] == list(PROMPTS)
    assert [Path(row["file"]).name for row in written] == [f"{at}.png" for at in range(5)]
    np.testing.assert_allclose([float(r["soft"]) for r in written], Soft()(images, PROMPTS, group), atol=1e-9)
    np.testing.assert_allclose([float(r["hpsv2.1"]) for r in written], scorer(images, PROMPTS, group), atol=1e-6)

    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["scorers"]["hpsv2.1"]["unit"] == "cosine"
    assert told["scorers"]["hpsv2.1"]["revision"] == scorer.info.revision
    assert told["rows"][3]["scores"]["soft"] == pytest.approx(float(written[3]["soft"]), abs=0)
    assert told["summary"]["soft"]["mean"] == pytest.approx(np.mean([float(r["soft"]) for r in written]))
    line, below = (text for text in answer.out.splitlines() if "hpsv2" in text or text.startswith("    "))
    assert "5 scored  [cosine, -1 to 1, higher is better" in line
    assert below.strip() == f"{scorer.info.model}; {scorer.info.preprocessing}"
    assert answer.out.count("\n") == 4, "a rule has no second line"


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv"])
def test_a_list_names_files_relative_to_itself_in_any_order(call, folder, tmp_path, name):
    lines = [{"image": f"pictures/{at}.png", "caption": PROMPTS[at]} for at in (3, 0, 4)]
    if name.endswith("csv"):
        text = "image,caption\n" + "".join(f"{line['image']},{line['caption']}\n" for line in lines)
    else:
        text = "\n\n".join(map(json.dumps, lines))
    (tmp_path / name).write_text(text)
    assert call(["score", "--rewards", "soft", name]).status == 0
    expected = Soft()(as_scorer_sees(pictures()), PROMPTS, np.arange(5))[[3, 0, 4]]
    np.testing.assert_allclose([float(row["soft"]) for row in rows(tmp_path / "scores.csv")], expected, atol=1e-9)


def test_images_of_several_sizes_are_scored_each_in_its_place(call, folder, tiny, tmp_path):
    rng = seeded(1)[0]
    sizes = [(40, 30), (32, 32), (30, 40), (32, 32), (40, 30)]
    for at, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{at}.png")
    assert call(["score", "--rewards", f"hpsv2.1(weights={tiny})", "pictures", "--batch", "2"]).status == 0
    scorer = HPSv2(weights=str(tiny))
    scorer.load()
    alone = [
        scorer(as_scorer_sees(np.asarray(Image.open(folder / f"{at}.png"))[None]), [PROMPTS[at]], np.array([0]))[0]
        for at in range(5)
    ]
    np.testing.assert_allclose([float(r["hpsv2.1"]) for r in rows(tmp_path / "scores.csv")], alone, atol=1e-6)


def test_a_file_that_breaks_off_has_no_score_and_the_others_have(call, folder, tmp_path):
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[:-60])
    answer = call(["score", "--rewards", "soft", "pictures"])
    assert answer.status == 1
    assert "2.png" in answer.err
    assert [row["soft"] == "" for row in rows(tmp_path / "scores.csv")] == [False, False, True, False, False]
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["rows"][2]["scores"] == {"soft": None}
    assert told["summary"]["soft"]["failed"] == 1


def test_a_scorer_that_fails_leaves_the_others_their_scores(call, folder, tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "1.png")
    answer = call(["score", "--rewards", "soft,random", "pictures"])
    assert answer.status == 1
    written = rows(tmp_path / "scores.csv")
    assert [row["soft"] == "" for row in written] == [False, True, False, False, False]
    assert all(row["random"] for row in written)
    assert "soft: ValueError: images must have shape" in answer.err


GONE = """
from bench.contract import RewardInfo, UnavailableError
class Gone:
    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")
    calls = 0
    def __call__(self, images, prompts, group):
        self.calls += 1
        if self.calls > 1:
            raise UnavailableError("it went home")
        return [0.5] * len(images)
REWARDS = {"gone": Gone}
"""


def test_what_was_scored_before_a_scorer_went_away_is_kept(call, folder, tmp_path):
    (tmp_path / "gone.py").write_text(GONE)
    words = ["--rewards", "gone,random", "--plugin", "gone.py", "--batch", "2"]
    answer = call(["score", *words, "pictures"])
    assert answer.status == 1
    assert answer.err.count("it went home") == 1
    written = rows(tmp_path / "scores.csv")
    assert sum(row["gone"] == "0.5" for row in written) == 2
    assert all(row["random"] for row in written)


def test_animated_png_is_a_video(call, tmp_path):
    frames = [Image.fromarray(np.full((32, 32, 3), 20 * at, np.uint8)) for at in range(9)]
    (tmp_path / "clips").mkdir()
    frames[0].save(tmp_path / "clips" / "0.png", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "clips" / "0.txt").write_text("a red circle moving right")
    answer = call(["score", "--rewards", "motion", "clips"])
    assert (answer.status, answer.err) == (0, "")
    assert call(["score", "--rewards", "soft", "clips", "--out", "b"]).err.startswith("bench: clips/0.png has 9 frames")


@pytest.mark.parametrize("samples", ["cell/samples/000010", "base-1/samples"])
def test_samples_of_a_run_have_its_held_out_prompts(call, tmp_path, samples):
    suite = tmp_path / "suite"
    (suite / "cell").mkdir(parents=True)
    (suite / "base-1").mkdir()
    (suite / "cell" / "config.yaml").write_text("")
    (suite / "base-1" / "features.npz").write_bytes(b"")
    (suite / "base-1" / "result.json").write_text(json.dumps({"prompts": PROMPTS}))
    (suite / samples).mkdir(parents=True)
    for at in (1, 3):
        Image.fromarray(pictures()[at]).save(suite / samples / f"{at:03d}.png")
    assert call(["score", "--rewards", "soft", f"suite/{samples}"]).status == 0
    assert [row["prompt"] for row in rows(tmp_path / "scores.csv")] == [PROMPTS[1], PROMPTS[3]]


WRONG = {
    "an-unknown-scorer": (["--rewards", "hps", "pictures"], "unknown reward 'hps'"),
    "no-scorer": (["--rewards", "", "pictures"], "no scorer is named"),
    "a-weight": (["--rewards", "soft:0.5", "pictures"], "'soft:0.5': a weight is of training"),
    "an-unknown-option": (["--rewards", "hpsv2.1(alias=1)", "pictures"], "hpsv2.1 has no option 'alias'"),
    "images-and-videos": (["--rewards", "soft,motion", "pictures"], "'soft' scores images and 'motion' videos"),
    "no-folder": (["--rewards", "soft", "nowhere"], "nowhere: no such folder or file"),
    "no-weights": (["--rewards", "hpsv2.1", "pictures"], "HPS_v2.1_compressed.pt (about 1.97 GB) of xswu/HPSv2"),
    "no-batch": (["--rewards", "soft", "pictures", "--batch", "0"], "--batch 0"),
    "a-folder-to-write": (["--rewards", "soft", "pictures", "--out", "pictures"], "as in --out pictures/scores"),
    "a-slash": (["--rewards", "soft", "pictures", "--out", "new/"], "--out new/ is a folder: name files in it"),
    "a-long-name": (["--rewards", "soft", "pictures", "--out", "x" * 300], ".csv cannot be written: File name too"),
    "no-folder-to-write": (["--rewards", "soft", "pictures", "--out", "a/b"], "there is no folder a"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_are_refused_in_a_line(call, folder, tmp_path, name):
    words, says = WRONG[name]
    answer = call(["score", *words])
    assert answer.status == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "scores.csv").exists()


def _no_prompt(folder):
    (folder / "3.txt").unlink()


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


def _transparent(folder):
    Image.new("RGBA", (32, 32)).save(folder / "3.png")


def _sixteen_bit(folder):
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(folder / "3.png")


def _text(folder):
    (folder / "3.png").write_text("no image")


def _absent(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "7.png", "text": "a red circle"}')


def _no_json(folder):
    (folder / "metadata.jsonl").write_text("7.png")


def _no_file(folder):
    (folder / "metadata.jsonl").write_text('{"text": "a red circle"}')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_prompt, "3.png has no prompt: pictures wants a metadata.jsonl, or a 3.txt beside it"),
        (_empty, "pictures holds no image or video"),
        (_transparent, "3.png has mode RGBA: 8-bit RGB is wanted"),
        (_sixteen_bit, "8-bit RGB is wanted"),
        (_text, "3.png is no image that can be read"),
        (_absent, "names 1 files that are not there"),
        (_no_json, "metadata.jsonl:1 is not JSON"),
        (_no_file, "metadata.jsonl:1 has no file_name"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_work(call, folder, tmp_path, spoil, says):
    spoil(folder)
    answer = call(["score", "--rewards", "soft", "pictures"])
    assert answer.status == 2
    assert says in answer.err
    assert not (tmp_path / "scores.csv").exists()


def test_a_device_that_is_not_there_is_refused(call, folder, monkeypatch):
    def none(*_):
        raise AssertionError("Torch not compiled with CUDA enabled\n")

    monkeypatch.setattr(torch.cuda, "set_device", none)
    answer = call(["score", "--rewards", "soft", "pictures", "--device", "cuda"])
    assert (answer.status, answer.err) == (2, "bench: --device cuda: Torch not compiled with CUDA enabled\n")


@pytest.mark.parametrize("out", ["mine", "mine.csv", "mine.json"])
def test_out_is_a_name_with_or_without_its_ending(call, folder, tmp_path, out):
    assert call(["score", "--rewards", "soft", "pictures", "--out", out]).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "mine.json", "pictures"]


def test_what_a_folder_has_besides_is_told_in_a_line(call, folder, tmp_path):
    (folder / "5.jp2").write_bytes(b"")
    (folder / "more").mkdir()
    answer = call(["score", "--rewards", "soft", "pictures"])
    assert answer.status == 0
    assert answer.err == "bench: pictures: 5.jp2 and 1 more are left out: in no list, or no image or video\n"


OWN = """
import math, os, signal
from bench.contract import RewardInfo
class Own:
    info = RewardInfo(
        unit="", low=0.0, high=math.inf, higher_is_better=True, revision="1", reference="", groupwise=True
    )
    def load(self): {load}
    def __call__(self, images, prompts, group): {call}
REWARDS = {{"own": Own}}
"""
STOP = "os.kill(os.getpid(), signal.SIGINT)"


def own(tmp_path, load="pass", call="return [0.5] * len(images)"):
    (tmp_path / "own.py").write_text(OWN.format(load=load, call=call))
    return ["score", "--rewards", "own", "--plugin", "own.py", "pictures"]


def test_a_scorer_without_an_end_of_its_range_has_null_there(call, folder, tmp_path):
    answer = call(own(tmp_path))
    assert (answer.status, answer.err) == (0, "")
    assert "[, 0 to -, higher is better" in answer.out
    assert json.loads((tmp_path / "scores.json").read_text())["scorers"]["own"]["high"] is None


def test_a_prompt_with_images_of_two_sizes_is_refused_where_they_are_compared(call, folder, tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "2.png")
    answer = call(own(tmp_path, load="raise SystemError('loaded')"))
    assert answer.status == 2
    assert "own compares the files of a prompt" in answer.err


def test_whatever_loading_raises_is_told_in_a_line(call, folder, tmp_path):
    answer = call(own(tmp_path, load="raise KeyError('scale')"))
    assert (answer.status, answer.err) == (2, "bench: own cannot be loaded: KeyError: 'scale'\n")


def test_ctrl_c_writes_what_has_been_scored_and_says_that_the_rest_is_not(call, folder, tmp_path):
    answer = call(own(tmp_path, call=STOP))
    assert (answer.status, answer.err) == (130, "bench: interrupted: what is not scored has no score\n")
    assert [row["own"] for row in rows(tmp_path / "scores.csv")] == [""] * 5
    assert json.loads((tmp_path / "scores.json").read_text())["summary"]["own"]["failed"] == 5


def test_ctrl_c_before_anything_is_scored_says_so(call, folder, tmp_path):
    answer = call(own(tmp_path, load=STOP))
    assert (answer.status, answer.err) == (130, "bench: interrupted; no score is written\n")
    assert not (tmp_path / "scores.csv").exists()


def test_a_film_at_another_rate_than_its_scorer_takes_is_refused_before_it_is_loaded(call, tmp_path):
    (tmp_path / "timed.py").write_text(
        GONE.replace('reference=""', 'reference="", media="video"') + "Gone.fps = 16.0\n"
    )
    frames = [Image.fromarray(np.full((32, 32, 3), 20 * at, np.uint8)) for at in range(9)]
    (tmp_path / "clips").mkdir()
    frames[0].save(tmp_path / "clips" / "0.png", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "clips" / "0.txt").write_text("a red circle moving right")
    answer = call(["score", "--rewards", "gone", "--plugin", "timed.py", "clips"])
    assert answer.status == 2
    assert "0.png has 10 frames a second, and gone takes 16: say gone(fps=10)" in answer.err


def test_scores_that_are_there_are_not_overwritten(call, folder, tmp_path):
    (tmp_path / "scores.json").write_text("mine")
    assert "scores.json is there already" in call(["score", "--rewards", "soft", "pictures"]).err
    assert (tmp_path / "scores.json").read_text() == "mine"
    assert call(["score", "--rewards", "soft", "pictures", "--out", "others"]).status == 0
