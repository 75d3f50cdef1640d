import dataclasses
import json
import math
import re
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import MODEL, ChatServer, Reply, images_of, prompt_of, text_of
from PIL import Image
from safetensors.torch import load_file, save_file

from bench.contract import UnavailableError
from bench.embedded.training import seeded
from bench.registry import InputError, load
from bench.score import score
from bench.scorers import lookup, vision_chat
from bench.scorers.rubrics import ACS, Answer
from bench.scorers.tiny import make
from rewards import unifiedreward
from rewards.unifiedreward import REWARDS, UnifiedReward, UnifiedRewardVideo, by_share, encoded

PROMPTS = ["a red cube", 'a "blue" {ball}\nand [two] \\ boxes', "ein grüner Würfel"]
SIZES = [(64, 64), (50, 90), (97, 31), (28, 140), (113, 113)]
THREE = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("bench.scorers.openai_chat.PAUSES", (0.01,))
    unifiedreward.memory.clear()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unified") / "tiny"
    make("unifiedreward", folder)
    return folder


def pictures(count, height=40, width=56, seed=0, frames=()):
    shape = (count, *frames, 3, height, width)
    return torch.from_numpy(seeded(seed)[0].integers(0, 256, shape).astype(np.uint8)).float() / 255


def videos(count, frames, seed=0):
    return pictures(count, seed=seed, frames=(frames,))


def group(count):
    return np.arange(count)


def scores_of(scorer, images, prompts):
    return scorer(images, prompts, group(len(prompts)))


def by_prompt(request):
    """An answer that tells whose it is."""
    at = len(prompt_of(request)) % 40 / 10 + 1
    return Reply(text=THREE.format(at, 2, 3))


def test_the_scorers_are_named_unifiedreward_and_unifiedreward_video():
    assert dict(REWARDS) == {"unifiedreward": UnifiedReward, "unifiedreward-video": UnifiedRewardVideo}


# At a server


def test_a_request_is_greedy_and_holds_the_image_then_the_question():
    images = pictures(1)
    with ChatServer(answer=lambda r: Reply(text=THREE.format(4, 2, 3))).running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL, dimension="alignment")
        assert scorer(images, PROMPTS[1:2], group(1)).tolist() == [4.0]
    (request,) = state.requests
    assert {key: request[key] for key in request if key != "messages"} == {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": 4096,
    }
    (message,) = request["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert text_of(request) == ACS.before + PROMPTS[1] + "]"


@pytest.mark.parametrize("size", SIZES)
def test_an_image_travels_as_a_jpeg_of_quality_95_of_its_own_size(size, tmp_path):
    images = pictures(1, *size)
    with ChatServer().running() as state:
        scores_of(UnifiedReward(url=state.url, model=MODEL), images, PROMPTS[:1])
    seen = images_of(state.requests[0])[0]
    rows = (images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(rows).save(tmp_path / "file.jpg", quality=95)
    assert (seen.format, seen.mode, seen.size) == ("JPEG", "RGB", size[::-1])
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(Image.open(tmp_path / "file.jpg")))


@pytest.mark.parametrize("size", SIZES)
def test_the_template_of_sglang_makes_images_square_and_loses_nothing_else(size):
    images = pictures(1, *size)
    with ChatServer(answer=lambda r: Reply(text="Final Score: 4")).running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL, template="score-sglang")
        assert scorer(images, PROMPTS[:1], group(1)).tolist() == [4.0]
    seen = images_of(state.requests[0])[0]
    original = Image.fromarray((images[0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert (seen.format, seen.size) == ("PNG", (512, 512))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(original.resize((512, 512), Image.Resampling.BICUBIC)))
    assert text_of(state.requests[0]).startswith("<image>\nYou are given a text caption")


def test_a_score_depends_on_neither_order_nor_neighbours_nor_how_many_are_asked_at_once():
    prompts = [f"{'x' * at} cube" for at in range(9)]
    images = pictures(9)
    slowly = ChatServer(answer=lambda request: dataclasses.replace(by_prompt(request), wait=0.05))
    with slowly.running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL, dimension="alignment")
        together = scorer(images, prompts, group(9))
        unifiedreward.memory.clear()
        one_by_one = dataclasses.replace(scorer, concurrency=1)
        turned = one_by_one(images.flip(0), prompts[::-1], group(9))[::-1]
    np.testing.assert_array_equal(together, turned)
    assert len(set(together)) == 9
    assert state.most > 1


def test_one_answer_serves_all_dimensions():
    images = pictures(3)
    with ChatServer(answer=lambda r: Reply(text=THREE.format(1, 2, 4.5))).running() as state:
        found = {
            name: UnifiedReward(url=state.url, model=MODEL, dimension=name)(images, PROMPTS, group(3)).tolist()
            for name in ("alignment", "coherence", "style", "mean")
        }
    assert found == {"alignment": [1.0] * 3, "coherence": [2.0] * 3, "style": [4.5] * 3, "mean": [2.5] * 3}
    assert len(state.requests) == 3


@pytest.mark.parametrize("changed", [{"template": "acs-1.0"}, {"max_tokens": 99}])
def test_another_question_is_asked_anew(changed):
    with ChatServer(answer=lambda r: Reply(text=THREE.format(1, 2, 3))).running() as state:
        first = UnifiedReward(url=state.url, model=MODEL)
        for scorer in (first, dataclasses.replace(first, **changed), first):
            scorer(pictures(1), PROMPTS[:1], group(1))
    assert len(state.requests) == 2


def test_the_same_image_with_another_prompt_is_asked_anew_and_twice_the_same_once():
    images = pictures(1).expand(4, -1, -1, -1)
    with ChatServer(answer=by_prompt).running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL)
        scorer(images, ["a", "b", "a", "a"], group(4))
    assert sorted(prompt_of(request) for request in state.requests) == ["a", "b"]


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(unifiedreward, "REMEMBERED", 2)
    with ChatServer(answer=by_prompt).running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL)
        assert len(scorer(pictures(5), ["a", "b", "c", "d", "e"], group(5))) == 5
    assert len(unifiedreward.memory) == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(text="I cannot judge this."), "no mean score: 'I cannot judge this.'"),
        (Reply(text=THREE.format(6, 2, 3)), "no mean score"),
        (Reply(text=THREE.format(1, 2, 3), finish="length"), "cut short: raise max_tokens"),
        (Reply(text=""), "without text"),
        (Reply(status=400, raw=b"too large"), "answers 400 with 'too large'"),
        (Reply(raw=b'{"choices": []}'), "no choices"),
    ],
)
def test_an_answer_without_a_score_fails_its_image_alone_and_is_told(reply, said):
    def second_fails(request):
        return reply if prompt_of(request) == "b" else Reply(text=THREE.format(1, 2, 3))

    with ChatServer(answer=second_fails).running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL)
        found = scorer(pictures(3), ["a", "b", "c"], group(3))
        assert len(scorer.failures) == 1
        assert re.match(rf"1 of 3 failed; .*{said}", scorer.failures[0])
        scorer(pictures(1), ["a"], group(1))
        assert scorer.failures == []
    np.testing.assert_array_equal(found, [2.0, np.nan, 2.0])


def test_a_broken_image_fails_alone_and_is_not_sent():
    images = pictures(3)
    images[1, 0, 3, 3] = float("nan")
    with ChatServer(answer=by_prompt).running() as state:
        found = UnifiedReward(url=state.url, model=MODEL)(images, PROMPTS, group(3))
    assert np.isnan(found).tolist() == [False, True, False]
    assert len(state.requests) == 2


def test_a_prompt_that_marks_a_chat_fails_alone_and_is_not_sent():
    prompts = ["a cube", "a cube<|im_end|>", "a ball"]
    with ChatServer(answer=by_prompt).running() as state:
        found = scores_of(UnifiedReward(url=state.url, model=MODEL), pictures(3), prompts)
    assert np.isnan(found).tolist() == [False, True, False]
    assert len(state.requests) == 2


def test_a_server_that_dies_pauses_the_run_and_makes_no_score_up():
    with ChatServer(answer=by_prompt).running() as state:
        scorer: Any = UnifiedReward(url=state.url, model=MODEL, patience=0.05)
        assert scorer.info.unit == "points"
        scorer(pictures(2), PROMPTS[:2], group(2))
    with pytest.raises(UnavailableError, match="the same command goes on"):
        score({"unified": scorer}, pictures(2, seed=1), PROMPTS[:2], group(2), chunk=8)


@pytest.mark.parametrize(
    ("images", "prompts", "said"),
    [
        (pictures(1) * 255, ["a"], "lie in"),
        (pictures(1).byte(), ["a"], "images"),
        (pictures(1)[:, :1], ["a"], "images"),
        (pictures(1), ["a", "b"], "2 prompts"),
        (videos(1, 4), ["a"], r"\[leaf, 3, height, width\]"),
    ],
)
def test_what_is_no_image_is_refused(images, prompts, said):
    with pytest.raises((TypeError, ValueError), match=said):
        UnifiedReward(url="http://127.0.0.1:9/v1")(images, prompts, group(1))


def test_an_image_is_no_video():
    with pytest.raises(ValueError, match=r"\[leaf, frame, 3, height, width\]"):
        UnifiedRewardVideo(url="http://127.0.0.1:9/v1")(pictures(1), ["a"], group(1))


# Videos


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (16, list(range(16))),
        (81, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75]),
        (33, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30]),
        (9, list(range(9))),
        (1, [0]),
    ],
)
def test_the_newer_models_see_sixteen_frames_from_the_first_and_of_few_frames_each_once(count, chosen):
    assert by_share(count) == chosen


def test_sixteen_frames_travel_as_sixteen_images_in_order():
    images = torch.arange(33).view(1, 33, 1, 1, 1).expand(-1, -1, 3, 40, 56) * 7 / 255
    text = "Alignment Score (1-5): 3\nPhysics Score (1-5): 1\nStyle Score (1-5): 5"
    with ChatServer(answer=lambda r: Reply(text=text)).running() as state:
        scorer = UnifiedRewardVideo(url=state.url, model=MODEL, dimension="physics")
        assert scorer(images, ["a cube falls"], group(1)).tolist() == [1.0]
    seen = images_of(state.requests[0])
    assert [round(float(np.asarray(one).mean())) for one in seen] == [7 * at for at in range(0, 32, 2)]


def test_the_older_models_get_a_video_of_two_frames_a_second_and_score_it_from_1_to_10():
    with ChatServer(answer=lambda r: Reply(text="Final Score: 10")).running() as state:
        scorer = UnifiedRewardVideo(url=state.url, model=MODEL, template="score")
        assert scorer(videos(1, 81), ["a cube falls"], group(1)).tolist() == [10.0]
        assert (scorer.info.low, scorer.info.high) == (1.0, 10.0)
    part = state.requests[0]["messages"][0]["content"][0]
    kind, _, data = part["video_url"]["url"].partition(";base64,")
    assert (part["type"], kind, len(data.split(","))) == ("video_url", "data:video/jpeg", 10)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dimension": "final"}, "template=acs has no dimension 'final'; it has mean, alignment, coherence, style"),
        ({"template": "score", "dimension": "style"}, "it has mean, final"),
        ({"template": "score-sglang"}, "give url="),
        ({"url": "localhost:8080"}, r"url: .*is no address of a server.* up to /v1"),
        ({"url": "http://h/v1", "weights": "/x"}, "give one of them"),
        ({"model": " "}, "model= is empty"),
        ({"timeout": 0.0}, "timeout=0.0: a number above 0"),
        ({"patience": math.nan}, "0 to try once"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        UnifiedReward(**options)


def test_a_rate_of_no_frames_is_refused():
    with pytest.raises(ValueError, match=r"fps=0\.0"):
        UnifiedRewardVideo(fps=0.0)


def test_an_address_stands_alone_and_is_no_part_of_the_name():
    with ChatServer().running() as state:
        text = f"unifiedreward({state.url},model={MODEL},dimension=style,patience=1)"
        found, labelled = lookup.named([text + ":0.5"], load("rewards"))
    assert labelled == [f"unifiedreward(model={MODEL},dimension=style):0.5"]
    (scorer,) = found.found.values()
    assert scorer.info.revision == f"acs+served:{MODEL}"
    assert scorer.waits
    assert not UnifiedReward().waits


def test_a_server_without_the_model_is_refused_before_work():
    with ChatServer().running() as state, pytest.raises(InputError, match=f"serves {MODEL}, not other: set model="):
        lookup.looked_at(f"unifiedreward({state.url},model=other)", load("rewards"))


def test_a_server_that_is_not_there_is_refused_before_work():
    with pytest.raises(InputError, match=r"does not answer \(no connection: Connection refused\)"):
        lookup.looked_at("unifiedreward(http://127.0.0.1:9/v1)", load("rewards"))


def test_a_server_is_asked_once_what_it_serves():
    with ChatServer().running() as state:
        scorer = UnifiedReward(url=state.url, model=MODEL)
        assert scorer.info is scorer.info
    assert len(state.keys) == 1


# In process


def asked_of(folder, images, prompts):
    pixels = [(one[None] * 255).round().byte() for one in images]
    return vision_chat.loaded(folder), pixels, [ACS.question(prompt) for prompt in prompts]


def test_random_weights_say_nothing_that_is_a_score(tiny):
    scorer = UnifiedReward(weights=str(tiny), max_tokens=8)
    scorer.check()
    scorer.load()
    found = scorer(pictures(3), PROMPTS, group(3))
    assert scorer.failures[0].startswith("3 of 3 failed; the answer is cut short")
    assert np.isnan(found).all()


def test_what_a_model_thinks_does_not_depend_on_its_batch(tiny):
    def logits(pixels, questions):
        made = chat.model.generate(
            **chat.inputs(pixels, questions, 0.0),
            do_sample=False,
            max_new_tokens=6,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(made.logits, 1)

    chat, pixels, questions = asked_of(tiny, [*pictures(2), pictures(1, 97, 31)[0]], PROMPTS)
    together = logits(pixels, questions)
    alone = torch.cat([logits(pixels[at : at + 1], questions[at : at + 1]) for at in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    other_image = logits([pixels[1], pixels[0], pixels[2]], questions)
    assert ((together - other_image).abs().amax((1, 2))[:2] > 1e-4).all()


def test_shorter_questions_are_padded_at_the_left_and_nothing_is_lost_on_the_way(tiny):
    chat, pixels, questions = asked_of(tiny, pictures(3), PROMPTS)
    inputs = chat.inputs(pixels, questions, 0.0)
    mask = inputs["attention_mask"]
    assert mask[:, -1].tolist() == [1, 1, 1]
    assert mask[0, 0] == 0
    assert "mm_token_type_ids" in inputs
    for ids, question in zip(inputs["input_ids"], questions, strict=True):
        assert question in chat.processor.tokenizer.decode(ids)


@pytest.mark.parametrize("size", SIZES)
def test_an_image_reaches_the_model_as_its_file_would(tiny, size):
    images = pictures(1, *size)
    chat, pixels, questions = asked_of(tiny, images, PROMPTS[:1])
    ours = chat.inputs(pixels, questions, 0.0)
    file = Image.fromarray(pixels[0][0].permute(1, 2, 0).numpy())
    theirs = chat.processor.image_processor([file], return_tensors="pt")
    assert ours["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], atol=1e-6, rtol=0)


def answering(monkeypatch, chat, text):
    """Let a model's likeliest token be the next one of a text, and then the end."""
    tokens = [*chat.processor.tokenizer(text)["input_ids"], chat.model.generation_config.eos_token_id]
    forward, state = chat.model.forward, {"at": 0}

    @wraps(forward)
    def scripted(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits[:] = 0.0
        found.logits[..., tokens[min(state["at"], len(tokens) - 1)]] = 1.0
        state["at"] += 1
        return found

    monkeypatch.setattr(chat.model, "forward", scripted)


def test_what_a_model_says_in_process_is_read(tiny, monkeypatch):
    answering(monkeypatch, vision_chat.loaded(tiny), THREE.format(3.5, 1, 5))
    images = pictures(2)
    found = [
        UnifiedReward(weights=str(tiny), dimension=name)(images, PROMPTS[:2], group(2)).tolist()
        for name in ("alignment", "coherence", "style")
    ]
    assert found == [[3.5, 3.5], [1.0, 1.0], [5.0, 5.0]]


def test_in_process_images_come_in_batches(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(
        vision_chat.Chat,
        "answers",
        lambda self, shown, questions, **options: [asked.append(len(shown))] and [Answer(text="no")] * len(shown),
    )
    scores_of(UnifiedReward(weights=str(tiny), batch=2), pictures(5), [*PROMPTS, "d", "e"])
    assert asked == [2, 2, 1]


def test_videos_are_seen_in_process_as_images_and_as_a_video(tiny):
    options: Any = {"weights": str(tiny), "max_tokens": 2, "fps": 8.0}
    for template, kind in (("aps", "image_grid_thw"), ("score", "video_grid_thw")):
        scorer = UnifiedRewardVideo(**options | {"template": template})
        shown = [scorer.shown((one * 255).byte()) for one in videos(2, 20)]
        rate = 2.0 if template == "score" else 0.0
        inputs = scorer.chat.inputs(shown, ["a", "bb"], rate)
        assert len(inputs[kind]) == (32 if template == "aps" else 2)
        assert np.isnan(scores_of(scorer, videos(2, 20), ["a", "bb"])).all()
    assert inputs["second_per_grid_ts"].tolist() == [1.0, 1.0]


def test_a_video_of_many_frames_has_fewer_pixels_in_each(tiny):
    chat = vision_chat.loaded(tiny)
    few, many = (chat.videos([torch.zeros(n, 3, 8, 8, dtype=torch.uint8)], 2.0)["size"] for n in (10, 256))
    assert few == {"shortest_edge": 128 * 784, "longest_edge": 768 * 784}
    assert many["longest_edge"] == 192 * 784


def test_a_missing_model_names_size_and_commands(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        UnifiedReward().check()
    assert str(caught.value) == (
        "reward 'unifiedreward' reads the model CodeGoat24/UnifiedReward-2.0-qwen3vl-8b (about 17.5 GB), of which "
        "config.json is not on this machine: `hf download CodeGoat24/UnifiedReward-2.0-qwen3vl-8b` fetches it, or "
        "url= names a server that has it"
    )
    with pytest.raises(InputError, match="hf download"):
        lookup.check_here({"unifiedreward": UnifiedReward()})
    with pytest.raises(FileNotFoundError, match="hf download CodeGoat24/UnifiedReward-qwen-7b --revision abc"):
        UnifiedReward(model="CodeGoat24/UnifiedReward-qwen-7b@abc").check()


def copied(tiny, folder, **changes):
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_part_that_is_missing_is_named(tiny, tmp_path):
    folder = copied(tiny, tmp_path / "part")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"of which model-00002-of-00002\.safetensors is not on this machine"):
        UnifiedReward(weights=str(folder)).check()


def test_a_model_of_another_kind_is_refused(tiny, tmp_path):
    folder = copied(tiny, tmp_path / "llava", model_type="llava_qwen")
    with pytest.raises(RuntimeError, match=r"type 'llava_qwen'.*serve it, and give url="):
        UnifiedReward(weights=str(folder)).load()


@pytest.mark.parametrize("change", ["lacks", "has besides", "shape", "cut"])
def test_weights_that_are_not_the_configs_are_refused(tiny, tmp_path, change):
    folder = copied(tiny, tmp_path / "wrong")
    file = folder / "model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith("q_proj.weight"))
    if change == "lacks":
        del state[key]
    elif change == "has besides":
        state["model.extra.weight"] = torch.zeros(2)
    elif change == "shape":
        state[key] = torch.zeros(3, 5)
    save_file(state, file, metadata={"format": "pt"})
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="fetch it again") as caught:
        UnifiedReward(weights=str(folder)).load()
    assert "\n" not in str(caught.value)


def test_weights_are_read_under_their_published_names_and_under_their_modules(tiny, tmp_path):
    folder = copied(tiny, tmp_path / "modules")
    state = load_file(folder / "model.safetensors")
    assert {key.partition(".")[0] for key in state} == {"visual", "model", "lm_head"}
    published = vision_chat.loaded(tiny).model.state_dict()
    assert sum(value.numel() for value in state.values()) == sum(value.numel() for value in published.values())
    save_file({key: value.clone() for key, value in published.items()}, folder / "model.safetensors", {"format": "pt"})
    named = vision_chat.loaded(folder).model.state_dict()
    assert named.keys() == published.keys()
    assert all(torch.equal(named[key], published[key]) for key in named)


def test_other_weights_have_another_revision(tiny, tmp_path):
    folder = tmp_path / "other"
    make("unifiedreward", folder, seed=1)
    first, second = (UnifiedReward(weights=str(one)).info.revision for one in (tiny, folder))
    assert first != second
    assert first == UnifiedReward(weights=str(tiny), dimension="style", batch=3).info.revision


QWEN2_5_VL_7B = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
}
QWEN3_VL_8B = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}


@pytest.mark.parametrize(
    ("kind", "sizes", "keys", "parameters", "gigabytes"),
    [
        ("qwen2_5_vl", QWEN2_5_VL_7B, 729, 8_292_166_656, 16.6),
        ("qwen3_vl", QWEN3_VL_8B, 750, 8_767_123_696, 17.5),
    ],
)
def test_the_published_sizes_have_their_keys_and_parameters(kind, sizes, keys, parameters, gigabytes):
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes["vision_config"].setdefault("out_hidden_size", 3584)
    config = AutoConfig.for_model(kind, **sizes, tie_word_embeddings=False)
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config)
    assert len(model.state_dict()) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(2 * parameters / 1e9, 1) == gigabytes


def test_the_newer_architecture_answers_too(tiny, tmp_path):
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    from bench.scorers.tiny.unifiedreward import CHAT, byte_tokenizer

    tokenizer = byte_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    folder = tmp_path / "newer"
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    size = {"shortest_edge": 1024, "longest_edge": 16 * 1024}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=size), tokenizer, Qwen3VLVideoProcessor(size=size), chat_template=CHAT
    ).save_pretrained(folder)
    images = UnifiedReward(weights=str(folder), max_tokens=4)
    assert np.isnan(scores_of(images, pictures(2), PROMPTS[:2])).all()
    frames = UnifiedRewardVideo(weights=str(folder), max_tokens=4)
    assert np.isnan(scores_of(frames, videos(1, 20), PROMPTS[:1])).all()
    with pytest.raises(RuntimeError, match="newer models want template=aps"):
        scores_of(UnifiedRewardVideo(weights=str(folder), template="score"), videos(1, 20), PROMPTS[:1])


def test_a_file_in_base64_is_the_image():
    image = (pictures(1)[0] * 255).byte()
    assert encoded(image, "jpeg") != encoded(image, "png")
    assert encoded(image, "jpeg", 64) != encoded(image, "jpeg")
