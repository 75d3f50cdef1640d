"""The embedded world's CLIP: a held-out judge of image-text agreement, trained with hard negatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from bench.embedded import world
from bench.embedded.make_text import LENGTH, clip_tokenizer
from bench.embedded.make_vae import bank
from bench.embedded.training import Training, draw_pictures, muon_and_adamw, seeded, train
from bench.embedded.world import Scene

BATCH = 128
"""Pictures a step; half of them show scenes, the other half the same scenes with one thing changed."""
BANK = 60_000
WEB = 0.3
"""Share of careless pictures: enough to know them, few enough that clutter speaks against a caption without it."""


def edits(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Yield every scene that differs in one respect, with the respect: the hard negatives of a caption."""
    things = scene.things
    for place, thing in enumerate(things):
        others = {other.colour for other in things}
        for colour in world.COLOURS:
            if colour not in others:
                changed = replace(thing, colour=colour)
                yield "colour", replace(scene, things=(*things[:place], changed, *things[place + 1 :]))
        for shape in world.SHAPES:
            if shape != thing.shape:
                changed = replace(thing, shape=shape)
                yield "shape", replace(scene, things=(*things[:place], changed, *things[place + 1 :]))
    if len(things) == 2 and things[0].shape != things[1].shape:
        first, second = things
        crossed = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        yield "binding", replace(scene, things=crossed)
    for field, words in (("size", world.SIZES), ("place", world.PLACES), ("relation", world.RELATIONS)):
        value = getattr(scene, field)
        yield from ((field, replace(scene, **{field: word})) for word in words if value and word != value)
    if scene.count > 1:
        yield from (("count", replace(scene, count=count)) for count in world.NUMBERS.values() if count != scene.count)


def new_scorer(tokenizer: Any) -> CLIPModel:
    """Return the untrained CLIP: vision 96 wide, 3 layers, patches of 4 pixels; text 64 wide, 2 layers."""
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": world.SIDE,
        "patch_size": 4,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48))
    with torch.no_grad():  # left and right are learned much later from random positions
        model.vision_model.embeddings.position_embedding.weight[1:] = 0.1 * _waves(world.SIDE // 4, 96)
    return model


def _waves(side: int, width: int) -> Tensor:
    """Return positions of a square of patches as sines and cosines of row and column, [side * side, width]."""
    frequency = torch.pi / side * torch.arange(1, width // 4 + 1) / 2
    phase = torch.arange(side)[:, None] * frequency
    wave = torch.cat([phase.sin(), phase.cos()], dim=1) * 2**0.5
    rows, columns = wave.repeat_interleave(side, dim=0), wave.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)


def _tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> dict[str, Tensor]:
    return dict(tokenizer(list(prompts), padding="max_length", return_tensors="pt"))


def similarity(model: Any, images: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
    """Return the cosine of every image in [0, 1] with every text, [image, text]."""
    image = model.visual_projection(model.vision_model(pixel_values=images * 2 - 1).pooler_output)
    text = model.text_projection(model.text_model(**tokens).pooler_output)
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def accuracy(model: Any, tokenizer: CLIPTokenizer, seed: int) -> dict[str, float]:
    """Return how often held-out clean pictures prefer their caption to one hard negative, by what was changed."""
    rng, _ = seeded(seed)
    prompts = world.prompts("heldout")
    images = torch.from_numpy(world.render(draw_pictures(prompts, rng, web=0.0)))
    right: dict[str, list[float]] = {}
    for row, prompt in enumerate(prompts):
        negatives = list(edits(world.parse(prompt)))
        texts = [prompt, *(world.caption(scene) for _, scene in negatives)]
        with torch.no_grad():
            scores = similarity(model, images[row : row + 1], _tokens(tokenizer, texts))[0]
        for (kind, _), score in zip(negatives, scores[1:], strict=True):
            right.setdefault(kind, []).append(float(scores[0] > score))
    means = {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
    return {"all": float(np.mean([value for values in right.values() for value in values])), **means}


class Pairs:
    """Draws batches: scenes, and for each the same scene with one thing changed, of base captions only."""

    def __init__(self, seed: int) -> None:
        self.prompts, self.images = bank(BANK, seed + 5, web=WEB)
        self._rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            self._rows.setdefault(prompt, []).append(row)
        self._twins = {prompt: self._hard(prompt) for prompt in self._rows}

    def _hard(self, prompt: str) -> list[list[str]]:
        """Return the drawn captions that differ in one respect, grouped by the respect so that each is as likely."""
        kinds: dict[str, list[str]] = {}
        for kind, scene in edits(world.parse(prompt)):
            if world.caption(scene) in self._rows:
                kinds.setdefault(kind, []).append(world.caption(scene))
        return list(kinds.values())

    def batch(self, rng: np.random.Generator) -> list[int]:
        """Return rows of the bank: `BATCH` / 2 scenes, then a changed twin of each."""
        rows = [int(row) for row in rng.integers(BANK, size=BATCH // 2)]
        for row in tuple(rows):
            # Half of the twins differ in the last respect: the attribute, where there is one, is the hardest to see.
            kinds = self._twins[self.prompts[row]]
            captions = kinds[-1] if rng.random() < 0.5 else kinds[int(rng.integers(len(kinds)))]
            twins = self._rows[captions[int(rng.integers(len(captions)))]]
            rows.append(twins[int(rng.integers(len(twins)))])
        return rows


def make_scorer(folder: Path, work: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the scorer and write it to `folder`; return seconds and hard-negative accuracy."""
    torch.manual_seed(seed + 5)
    tokenizer, pairs = clip_tokenizer(), Pairs(seed)
    model: Any = new_scorer(tokenizer)
    tokens = _tokens(tokenizer, pairs.prompts)
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(pairs.prompts))}
    label = torch.tensor([number[prompt] for prompt in pairs.prompts])

    def loss(step: int) -> Tensor:
        rng, noise = seeded(seed, 5, step)
        rows = torch.tensor(pairs.batch(rng))
        images = pairs.images[rows] / 255.0
        # A little noise, so that the judge does not lean on pixels that a decoder never gets exactly right.
        images = images + 0.05 * torch.rand(BATCH, 1, 1, 1, generator=noise) * torch.randn(
            images.shape, generator=noise
        )
        cosine = similarity(model, images, {name: value[rows] for name, value in tokens.items()})
        logits = cosine * model.logit_scale.exp().clamp(max=50.0)
        same = (label[rows][:, None] == label[rows][None, :]) & ~torch.eye(BATCH, dtype=torch.bool)
        logits = logits.masked_fill(same, -torch.inf)  # an equal caption is no negative
        target = torch.arange(BATCH)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    training = Training(
        name="scorer",
        steps=steps,
        parts={"scorer": model},
        optimisers=muon_and_adamw(model, inside="encoder.layers"),
        loss=loss,
        after=lambda _: None,
        check=lambda: accuracy(model.eval(), tokenizer, seed),
        check_every=500,
    )
    seconds = train(training, work)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"seconds": seconds, "steps": steps, **accuracy(model, tokenizer, seed)}
