import hashlib
import json
import math
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from bench.registry import InputError, load
from bench.scorers import tiny as tiny_scorers
from bench.scorers import videoreward
from bench.scorers.frames import sampled
from bench.scorers.lookup import check_here, label, looked_at
from bench.scorers.tiny.videoalign import SETTINGS
from bench.scorers.video_files import through_file
from bench.scorers.videoreward import (
    TEMPLATE,
    TOKENS,
    USUAL,
    WRAPPED,
    Judge,
    empty,
    merged,
    patches,
    questionnaire,
    take,
)
from rewards.videoalign import REWARDS, VideoAlign, preprocessed, target

PROMPTS = [
    "a red ball rolls to the right",
    "a cat",
    "curly “quotes” & {braces}, a prompt of more words than the others",
]
GROUP = np.zeros(3, np.int64)
PUBLISHED = {
    "model_type": "qwen2_vl",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vocab_size": 151936,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}
"""The config.json of Qwen2-VL-2B-Instruct, as far as it matters here."""
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'video' %}<|vision_start|><|video_pad|>"
    "<|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen2-VL's chat template makes of a message with one video."""


def videos(count=3, frames=9, height=32, width=40):
    """Smooth videos in 8 bits over 255: waves that go to the right, each faster and brighter than the last."""
    y, x = np.mgrid[:height, :width] / 8
    waves = [
        [[np.sin(x - 0.3 * (row + 1) * at + colour) * np.cos(y + row) for colour in range(3)] for at in range(frames)]
        for row in range(count)
    ]
    return torch.from_numpy(np.round(127 + 120 * np.array(waves))).float() / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("videoalign")
    tiny_scorers.make("videoalign", place)
    return place


@pytest.fixture(scope="module")
def scorer(folder):
    made = VideoAlign(weights=str(folder))
    made.load()
    return made


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of the tiny scorer that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def spoil(copy, **changes):
    """Change sections of model_config.json; None takes one away."""
    said = json.loads((copy / "model_config.json").read_text())
    for section, change in changes.items():
        said[section] = None if change is None else {**said[section], **change}
    (copy / "model_config.json").write_text(json.dumps(said))


def edit(copy, change):
    """Change the state in model.pth."""
    state = dict(torch.load(copy / "model.pth"))
    change(state)
    torch.save(state, copy / "model.pth")


def fails(copy, match):
    with pytest.raises(RuntimeError, match=match) as caught:
        VideoAlign(weights=str(copy)).load()
    assert "\n" not in str(caught.value)


def judged(judge, video=None, prompts=PROMPTS):
    pixels = (videos() if video is None else video).mul(255).round().to(torch.uint8)
    frames = pixels[:, sampled(pixels.shape[1], 16.0, 2.0)]
    with torch.inference_mode():
        return judge.inputs(preprocessed(frames, 200704), prompts), judge.logits(preprocessed(frames, 200704), prompts)


def states(judge, given):
    with torch.inference_mode():
        return judge.model(**given, use_cache=False).last_hidden_state


def test_the_scorer_is_named_videoalign():
    assert dict(REWARDS) == {"videoalign": VideoAlign}


def test_its_name_waits_for_no_library():
    code = (
        "import rewards.videoalign, sys; print({'torch', 'transformers', 'av', 'PIL', 'tokenizers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- what is looked at


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 832, (336, 588)),
        (720, 1280, (336, 588)),
        (480, 720, (364, 532)),
        (448, 448, (448, 448)),
        (32, 40, (308, 364)),
        (64, 64, (336, 336)),
        (333, 333, (336, 336)),
        (1000, 90, (1064, 112)),
        (20, 3000, (28, 3892)),
    ],
)
def test_frames_become_multiples_of_28(height, width, size):
    assert target(height, width, 200704) == size


def test_a_strip_is_refused():
    with pytest.raises(ValueError, match="10 x 2010 is too narrow: at most 200 to 1"):
        target(2010, 10, 200704)


@pytest.mark.parametrize(("height", "width"), [(480, 832), (100, 60), (37, 91), (448, 448), (333, 517)])
def test_frames_are_resized_as_torchvision_resizes_8_bit_tensors_for_the_published_code(height, width):
    from torchvision.transforms.functional import InterpolationMode, resize

    pixels = videos(1, 2, height, width).mul(255).round().to(torch.uint8)
    size = target(height, width, 200704)
    wanted = resize(pixels[0], list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float() / 255
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in CLIP)
    torch.testing.assert_close(preprocessed(pixels, 200704)[0], (wanted - mean) / std, atol=1e-5, rtol=0)


def test_the_8_bit_kernel_of_torchvision_would_move_pixels_far():
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    checks = torch.from_numpy(np.indices((60, 100)).sum(0) % 2 * 255).to(torch.uint8).expand(1, 2, 3, 60, 100)
    size = list(target(60, 100, 200704))
    other = resize(checks[0], size, InterpolationMode.BICUBIC, antialias=True).float()
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in CLIP)
    ours = (preprocessed(checks, 200704)[0] * std + mean) * 255
    assert (ours - other).abs().max() > 5


def processor(judge):
    """The processor of transformers, with the tiny tokenizer."""
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    words = PreTrainedTokenizerFast(tokenizer_object=judge.tokenizer, pad_token="<|endoftext|>", padding_side="right")
    reader = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=False)
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), words, reader, chat_template=CHAT)


def test_the_model_is_called_with_what_the_processor_of_transformers_makes(scorer):
    judge = scorer.judge
    reads = processor(judge)
    pixels = videos(frames=4, height=308, width=364).mul(255).round().to(torch.uint8)
    chats = [
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": TEMPLATE.format(text_prompt=text)}]}]
        for text in PROMPTS
    ]
    texts = [reads.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    options: Any = {"padding": True, "return_tensors": "pt"}
    wanted = reads(text=texts, videos=[one.float() for one in pixels], **options)
    given = judge.inputs(preprocessed(pixels, 200704), PROMPTS)
    mask = wanted.pop("attention_mask")
    assert {*wanted, "position_ids"} == set(given)
    for name, value in wanted.items():
        torch.testing.assert_close(given[name].to(value.dtype), value, atol=1e-5, rtol=0, msg=name)
    assert not mask.all()
    states = [judge.model(**given, **told).last_hidden_state for told in ({}, {"attention_mask": mask})]
    torch.testing.assert_close(states[0][mask == 1], states[1][mask == 1], atol=1e-5, rtol=0)


def test_patches_of_one_token_lie_side_by_side():
    frames = torch.arange(2 * 3 * 56 * 56).reshape(1, 2, 3, 56, 56).float()
    cut = patches(frames).reshape(4, 2, 2, 3, 2, 14, 14)
    assert torch.equal(cut[1, 0, 1, 2, 1], frames[0, 1, 2, :14, 42:56])
    assert torch.equal(cut[2, 1, 0, 0, 0], frames[0, 0, 0, 42:56, :14])


# --- what it is asked


def test_the_questionnaire_is_byte_for_byte_the_one_that_the_model_was_trained_on():
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest() == (
        "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"
    )


def test_the_prompt_stands_after_the_first_two_dimensions_and_before_the_third():
    text = questionnaire("a {cat}", 5)
    assert text.count("<|video_pad|>") == 5
    places = [text.index(part) for part in ("<|VQ_reward|>", "<|MQ_reward|>", "a {cat}", "<|TA_reward|>")]
    assert places == sorted(places)


@pytest.mark.parametrize("token", ["<|TA_reward|>", "<|video_pad|>", "<|im_end|>"])
def test_a_prompt_that_holds_a_token_of_the_model_is_refused(token):
    with pytest.raises(ValueError, match="a token of the model's own: leave it out"):
        questionnaire(f"a cat {token}", 5)


def test_visual_and_motion_quality_do_not_see_the_prompt(scorer):
    video = videos(1).expand(2, -1, -1, -1, -1)
    _, said = judged(scorer.judge, video, ["a cat", "a long story of a dog"])
    torch.testing.assert_close(said[0, :2], said[1, :2], atol=1e-5, rtol=0)
    assert (said[0, 2] - said[1, 2]).abs() > 0.01


def test_each_dimension_is_read_at_its_own_token(scorer):
    given, said = judged(scorer.judge)
    state = states(scorer.judge, given)
    for at, token in enumerate(TOKENS):
        here = given["input_ids"] == scorer.judge.tokenizer.token_to_id(token)
        assert here.sum(1).tolist() == [1, 1, 1]
        torch.testing.assert_close(said[:, at], state[here] @ scorer.judge.head[0], atol=1e-5, rtol=0)


# --- positions


def test_positions_are_one_dimensional_and_those_of_m_rope_would_score_far_off(scorer):
    given, said = judged(scorer.judge)
    length = given["input_ids"].shape[1]
    assert torch.equal(given["position_ids"], torch.arange(length).expand(3, 3, length))
    plain = states(scorer.judge, given)
    del given["position_ids"]
    spatial = states(scorer.judge, given)
    here = given["input_ids"] == scorer.judge.tokenizer.token_to_id("<|TA_reward|>")
    assert (said[:, 2] - plain[here] @ scorer.judge.head[0]).abs().max() < 1e-5
    assert (said[:, 2] - spatial[here] @ scorer.judge.head[0]).abs().max() > 0.3


def test_rotary_frequencies_are_rounded_to_bfloat16_as_published_unless_told_otherwise(folder, scorer):
    exact = VideoAlign(weights=str(folder), rope="fp32").judge
    for part in ("language_model.rotary_emb", "visual.rotary_pos_emb"):
        rounded = scorer.judge.model.get_submodule(part).inv_freq
        assert torch.equal(rounded, exact.model.get_submodule(part).inv_freq.bfloat16().float())
    assert (judged(exact)[1] - judged(scorer.judge)[1]).abs().max() > 0.1


# --- scores


def test_a_score_is_normalised_by_the_checkpoints_own_constants_and_overall_is_the_sum(scorer, folder):
    _, said = judged(scorer.judge)
    names = ("VQ", "MQ", "TA")
    mean, std = (torch.tensor([USUAL[f"{name}_{what}"] for name in names]) for what in ("mean", "std"))
    wanted = ((said - mean) / std).double().numpy()
    one = [VideoAlign(weights=str(folder), dimension=name)(videos(), PROMPTS, GROUP) for name in ("vq", "mq", "ta")]
    np.testing.assert_allclose(np.stack(one, 1), wanted, atol=1e-5)
    np.testing.assert_allclose(scorer(videos(), PROMPTS, GROUP), wanted.sum(1), atol=1e-5)
    assert one[0].dtype == np.float64


def test_the_constants_are_those_of_the_settings_and_are_never_guessed(copy):
    spoil(copy, inference_config={"VQ_mean": 1.0, "VQ_std": 2.0})
    assert videoreward.settings(copy / "model_config.json").mean == (1.0, 1.1646, 2.8105)
    assert videoreward.settings(copy / "model_config.json").std == (2.0, 1.3811, 2.5121)
    spoil(copy, inference_config=None)
    with pytest.raises(RuntimeError, match=r"not VideoReward's model_config\.json"):
        videoreward.settings(copy / "model_config.json")


def test_three_dimensions_share_one_model_and_one_look(folder, monkeypatch):
    made = [VideoAlign(weights=str(folder), dimension=name, batch=2) for name in ("vq", "mq", "ta")]
    assert made[0].judge is made[1].judge is made[2].judge
    looks = []
    real = Judge.logits
    monkeypatch.setattr(Judge, "logits", lambda self, *given: (looks.append(len(given[1])), real(self, *given))[1])
    video = videos() * 0.9
    first = [one(video, PROMPTS, GROUP) for one in made]
    assert looks == [2, 1], "batches of two, once each"
    assert np.abs(first[0] - first[1]).min() > 1e-3
    made[0](video, ["a dog", *PROMPTS[1:]], GROUP)
    assert looks == [2, 1, 2], "another prompt is looked at, the same batch is not"


def test_scores_do_not_depend_on_batch_order_or_neighbours(folder):
    one, many = (VideoAlign(weights=str(folder), batch=size) for size in (1, 3))
    alone, together = one(videos(), PROMPTS, GROUP), many(videos(), PROMPTS, GROUP)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(many(videos().flip(0), PROMPTS[::-1], GROUP)[::-1], alone, atol=1e-6)


def test_a_broken_video_fails_alone(scorer):
    whole, video = scorer(videos(), PROMPTS, GROUP), videos()
    video[1, 3, 2, 5, 5] = math.nan
    broken = scorer(video, PROMPTS, GROUP)
    assert np.isnan(broken).tolist() == [False, True, False]
    np.testing.assert_allclose(broken[[0, 2]], whole[[0, 2]], atol=1e-6)


def test_a_video_and_its_8_bit_copy_score_alike(scorer):
    moved = (videos() + 0.3 / 255).clamp(0, 1)
    np.testing.assert_array_equal(scorer(moved, PROMPTS, GROUP), scorer(videos(), PROMPTS, GROUP))


def test_a_file_moves_scores_a_little_as_it_moves_pixels_a_little(folder, scorer):
    filed = VideoAlign(weights=str(folder), frames="file")(videos(), PROMPTS, GROUP)
    direct, black = scorer(videos(), PROMPTS, GROUP), scorer(videos() * 0, PROMPTS, GROUP)
    assert 1e-4 < np.abs(filed - direct).max() < 0.5 * np.abs(black - direct).max()
    short = [one(videos(frames=4), PROMPTS, GROUP) for one in (scorer, VideoAlign(weights=str(folder), frames="file"))]
    assert np.abs(short[0] - short[1]).max() > 1e-4, "also where every frame is looked at"
    copies = torch.stack([through_file(one, 16.0) for one in videos().mul(255).round().to(torch.uint8)])
    np.testing.assert_allclose(scorer(copies.float() / 255, PROMPTS, GROUP), filed, atol=1e-6)


def test_frames_a_second_move_the_score_and_belong_to_the_name(folder):
    registry = load("rewards")
    texts = [f"videoalign(dimension=mq,weights={folder}{more})" for more in ("", ",batch=1", ",fps=2", ",frames=file")]
    looked = [looked_at(text, registry) for text in texts]
    names = [label(text, one) for text, one in zip(texts, looked, strict=True)]
    assert names == [
        "videoalign(dimension=mq)",
        "videoalign(dimension=mq)",
        "videoalign(dimension=mq,fps=2.0)",
        "videoalign(dimension=mq,frames=file)",
    ]
    scores = [one(videos(1), PROMPTS[:1], GROUP[:1])[0] for one in looked[:3]]
    assert scores[0] == pytest.approx(scores[1], abs=5e-6)
    assert abs(scores[0] - scores[2]) > 1e-3


def test_what_its_numbers_mean_is_said(folder):
    info = VideoAlign(weights=str(folder), dimension="mq", fps=8.0).info
    assert (info.unit, info.media, info.pixels, info.higher_is_better) == (
        "standard deviations",
        "video",
        "uint8",
        True,
    )
    assert "frames as decoded, 2 a second of 8" in info.preprocessing
    assert "crf 25" in VideoAlign(frames="file").info.preprocessing
    assert VideoAlign().info.unit == "sum of three, in standard deviations"
    assert json.loads(json.dumps([info.low, info.high], allow_nan=False)) == [-3.0, 3.0]


def test_half_precision_scores_nearly_alike(folder):
    exact, half = (VideoAlign(weights=str(folder), precision=what) for what in ("fp32", "bf16"))
    assert {weight.dtype for weight in half.judge.model.parameters()} == {torch.bfloat16}
    difference = np.abs(exact(videos(), PROMPTS, GROUP) - half(videos(), PROMPTS, GROUP))
    assert 0 < difference.max() < 1.0
    assert half.memory * 2 == exact.memory == 4 * 2_208_561_664


# --- the published checkpoint


def published_state(model):
    """The published state at full size, of tensors without memory: what PEFT and transformers 4.45 named."""
    state = {}

    def put(name, *shape):
        state[f"base_model.model.{name}"] = torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    for name, weight in model.state_dict().items():
        if not name.startswith("language_model."):
            put(name, *weight.shape)
            continue
        name = name.removeprefix("language_")
        stem, _, kind = name.rpartition(".")
        if not stem.endswith("_proj"):
            put(name, *weight.shape)
            continue
        put(f"{stem}.base_layer.{kind}", *weight.shape)
        if kind == "weight":
            put(f"{stem}.lora_A.default.weight", 64, weight.shape[1])
            put(f"{stem}.lora_B.default.weight", weight.shape[0], 64)
    put("lm_head.weight", 151660, 1536)
    put("rm_head.weight", 1, 1536)
    return state


@pytest.fixture
def full(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    said = {**SETTINGS, "peft_lora_config": {"lora_enable": True, "lora_r": 64, "lora_alpha": 128}}
    (tmp_path / "model_config.json").write_text(json.dumps(said))
    return empty(tmp_path / "config.json", 151660), videoreward.settings(tmp_path / "model_config.json")


def test_the_published_state_is_taken_key_by_key_at_full_size(full, tmp_path):
    model, settings = full
    state = published_state(model)
    assert (len(state), sum(value.numel() for value in state.values())) == (1123, 2_515_372_032)
    assert settings.scale == 2.0
    head = take(model, dict(state), settings, torch.float32, tmp_path / "model.pth")
    assert head.shape == (1, 1536)
    assert len(model.state_dict()) == 729
    assert sum(weight.numel() for weight in model.parameters()) == 2_208_561_664 == VideoAlign().memory // 4
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.visual.merger.mlp.2.bias",
        "base_model.model.model.layers.27.self_attn.q_proj.base_layer.bias",
        "base_model.model.model.layers.3.mlp.up_proj.lora_B.default.weight",
        "base_model.model.model.layers.3.mlp.up_proj.base_layer.weight",
        "base_model.model.rm_head.weight",
        "base_model.model.model.norm.weight",
    ],
)
def test_a_published_state_that_lacks_a_key_is_refused(full, tmp_path, key):
    model, settings = full
    state = published_state(model)
    del state[key]
    with pytest.raises(RuntimeError, match=r"is not VideoReward's model\.pth"):
        take(model, state, settings, torch.float32, tmp_path / "model.pth")


def test_a_key_too_many_is_refused(full, tmp_path):
    model, settings = full
    state = published_state(model)
    state["base_model.model.model.layers.28.input_layernorm.weight"] = torch.empty(1536, device="meta")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers\.28"):
        take(model, state, settings, torch.float32, tmp_path / "model.pth")


def test_lora_is_merged_as_peft_merges_it(folder, scorer):
    from peft import LoraConfig, get_peft_model

    state = {key: value.float() for key, value in torch.load(folder / "model.pth").items()}
    plain = merged(state, scorer.judge.settings)
    base = empty(folder / "config.json", len(plain["language_model.embed_tokens.weight"])).to_empty(device="cpu")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wrapped = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=names))
    theirs = {
        f"{WRAPPED}{key.removeprefix(WRAPPED).replace('model.', 'language_model.', 1)}"
        if key.startswith(f"{WRAPPED}model.")
        else key: value
        for key, value in state.items()
        if "m_head" not in key
    }
    wrapped.load_state_dict(theirs, strict=True)
    done = wrapped.merge_and_unload().state_dict()
    assert set(done) == set(plain) - {"rm_head.weight"}
    for key, value in done.items():
        torch.testing.assert_close(plain[key], value, atol=1e-6, rtol=1e-6, msg=key)
    key = "language_model.layers.0.mlp.up_proj.weight"
    assert (plain[key] - state[f"{WRAPPED}model.layers.0.mlp.up_proj.base_layer.weight"]).abs().max() > 0.01


def test_alpha_and_rank_are_of_the_settings(copy):
    path = copy / "model_config.json"
    assert videoreward.settings(path).scale == 2.0
    spoil(copy, peft_lora_config={"lora_alpha": 12})
    assert videoreward.settings(path).scale == 3.0
    spoil(copy, peft_lora_config={"use_rslora": True})
    assert videoreward.settings(path).scale == 6.0


def test_a_head_of_three_outputs_is_read_on_its_diagonal(copy, scorer):
    own = torch.load(copy / "model.pth")[f"{WRAPPED}rm_head.weight"]
    spoil(copy, model_config={"output_dim": 3})
    edit(copy, lambda state: state.update({f"{WRAPPED}rm_head.weight": torch.cat([own, 2 * own, -own])}))
    said = judged(VideoAlign(weights=str(copy)).judge)[1]
    torch.testing.assert_close(said, judged(scorer.judge)[1] * torch.tensor([1.0, 2.0, -1.0]))


def test_a_clone_of_the_repository_will_do_for_weights(copy, scorer):
    (copy / "checkpoint-11352").mkdir()
    (copy / "model.pth").rename(copy / "checkpoint-11352" / "model.pth")
    clone = VideoAlign(weights=str(copy))
    assert clone.info.revision == scorer.info.revision
    np.testing.assert_allclose(clone(videos(), PROMPTS, GROUP), scorer(videos(), PROMPTS, GROUP), atol=1e-6)


# --- what goes wrong


@pytest.mark.parametrize("name", ["model.pth", "model_config.json", "config.json", "tokenizer.json"])
def test_a_file_that_is_missing_is_named_with_a_remedy(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"'videoalign' reads {name}.*copy it to"):
        VideoAlign(weights=str(copy)).load()
    with pytest.raises(InputError, match=name):
        check_here({"videoalign": VideoAlign(weights=str(copy))})


def test_weights_that_were_never_fetched_are_named_with_size_and_command():
    with pytest.raises(FileNotFoundError) as caught:
        VideoAlign().load()
    assert str(caught.value) == (
        "reward 'videoalign' reads model.pth (about 5.03 GB) of KlingTeam/VideoReward, which is not on this machine: "
        "`bench prepare --rewards videoalign` fetches it"
    )


def test_a_damaged_checkpoint_is_refused(copy):
    data = (copy / "model.pth").read_bytes()
    for wrong in (b"", b"no state", data[: len(data) // 2]):
        (copy / "model.pth").write_bytes(wrong)
        fails(copy, r"model\.pth is not VideoReward's model\.pth")


def test_a_checkpoint_without_lora_is_refused(copy):
    def unwrap(state):
        for key in [key for key in state if ".lora_" in key]:
            del state[key]
        for key in [key for key in state if ".base_layer." in key]:
            state[key.replace(".base_layer.", ".")] = state.pop(key)

    edit(copy, unwrap)
    fails(copy, r"q_proj\.weight has no LoRA, and model_config\.json says rank 4")
    spoil(copy, peft_lora_config={"lora_enable": False})
    VideoAlign(weights=str(copy)).load()


def test_lora_keys_that_are_missing_or_of_another_rank_are_refused(copy):
    lost = f"{WRAPPED}model.layers.1.mlp.down_proj.lora_A.default.weight"
    spoil(copy, peft_lora_config={"lora_r": 8})
    fails(copy, r"has rank 4, and model_config\.json says 8")
    spoil(copy, peft_lora_config={"lora_r": 4})
    edit(copy, lambda state: state.pop(lost))
    fails(copy, r"KeyError.*layers\.1\.mlp\.down_proj\.lora_A")


def test_a_state_that_peft_did_not_wrap_is_refused(copy):
    edit(copy, lambda state: state.update({"model.norm.weight": state.pop(f"{WRAPPED}model.norm.weight")}))
    fails(copy, r"its key model\.norm\.weight does not begin with base_model\.model\.")


def test_a_checkpoint_without_rows_for_the_three_tokens_is_refused(copy):
    key = f"{WRAPPED}model.embed_tokens.weight"
    edit(copy, lambda state: state.update({key: state[key][:-3]}))
    fails(copy, r"embeds 608 tokens, and tokenizer\.json with the three of VideoReward has 611")


def test_a_head_that_the_settings_do_not_say_is_refused(copy):
    spoil(copy, model_config={"output_dim": 3})
    fails(copy, r"its head has 1 outputs, and model_config\.json says 3")


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("model_config", {"output_dim": 4}, "output_dim 4"),
        ("model_config", {"reward_token": "last"}, "reward_token 'last'"),
        ("data_config", {"prompt_template_type": "simple"}, "template 'simple'"),
        ("data_config", {"sample_type": "multi_pts"}, "sample_type 'multi_pts'"),
        ("data_config", {"num_frames": 8}, "num_frames 8"),
    ],
)
def test_settings_that_ask_for_something_else_are_refused(copy, section, change, said):
    spoil(copy, **{section: change})
    fails(copy, f"asks for {said}, which this scorer does not do")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer.json", r"tokenizer\.json is not a tokenizer"),
        ("config.json", r"config\.json is not the config\.json of Qwen2-VL.*model_type 'llama'"),
        ("model_config.json", r"is not VideoReward's model_config\.json: KeyError: 'data_config'"),
    ],
)
def test_tokens_config_and_settings_of_something_else_are_refused(copy, name, said):
    (copy / name).write_text('{"model_type": "llama"}')
    fails(copy, said)


def test_an_image_is_no_video(scorer):
    with pytest.raises(ValueError, match=r"videos of shape \[leaf, frame, 3, height, width\] are wanted"):
        scorer(videos()[:, 0], PROMPTS, GROUP)


def test_wrong_type_shape_range_and_number_of_prompts_are_refused(scorer):
    with pytest.raises(ValueError, match="3 videos and 2 prompts"):
        scorer(videos(), PROMPTS[:2], GROUP)
    with pytest.raises(ValueError, match=r"videos lie in \[0, 1\], and these from"):
        scorer(videos() * 255, PROMPTS, GROUP)
    with pytest.raises(ValueError, match="1 frame has no motion"):
        scorer(videos()[:, :1], PROMPTS, GROUP)
    with pytest.raises((TypeError, ValueError), match=r"RGB|Type-check"):  # the types of arguments are checked in tests
        scorer(videos()[:, :, :1], PROMPTS, GROUP)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("fps=0", "fps=0: frames a second"),
        ("fps=-8", "fps=-8: frames a second"),
        ("fps=.inf", "fps=inf: frames a second"),
        ("batch=0", "batch=0: at least one is scored at a time"),
        ("dimension=vv", "is not a choice; known: vq, mq, ta, overall"),
        ("frames=mp4", "is not a choice"),
    ],
)
def test_options_out_of_range_are_refused(option, said):
    with pytest.raises(InputError, match=said):
        looked_at(f"videoalign({option})", load("rewards"))
