"""`python -m rewards.parity --env hpsv2=DIR --env image-reward=DIR`: our scores beside the packages' own.

Both score the same images for the same prompts by the same weights: random ones, of the published sizes and layout,
or those of a folder. The packages run in environments of their own, which `python -m rewards.packages` makes; one
model is in memory at a time. The status is 1 where they differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import base64
import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from bench.contract import UnavailableError
from bench.noise import reproducible
from bench.serving import client
from bench.serving.client import Address, NotThereError
from rewards.packages import WORKER, python_of

if TYPE_CHECKING:
    from torch import Tensor

SCORERS = {"hpsv2": "hpsv2.1", "image-reward": "imagereward"}
"""Package -> our scorer."""
TOLERANCE = 1e-6
SECONDS = 900.0
"""That a worker may take to load, and to answer a request."""
LONGEST = 1 << 22
"""Bytes of its answer."""
SIZES = ((224, 224), (480, 720), (832, 480), (60, 100), (333, 517))
PROMPTS = (
    "a photo of a cat",
    "a sign that says \"don’t\", and ‘don't’ — it's “quoted”",
    "two red cubes " + "beside three blue spheres of glass, " * 12 + "at night",
    "",
    " ",
    "Crème brûlée &amp; 猫 🙂 [SEP] [ENC] <end_of_text>",
    "x" * 150,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one side says."""

    version: str
    ids: list[list[int]]
    """Of each prompt's tokens."""
    values: Float[np.ndarray, "prompt image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sides, compared."""

    package: str
    count: int
    spread: float
    """Of the package's scores: what a difference is to be seen against."""
    difference: float
    """The largest; NaN if a side has a score that is none."""
    ids: bool
    """Whether all token ids are equal."""
    ranking: bool
    """Whether the images of each prompt have one order."""

    @property
    def holds(self) -> bool:
        """Return whether the two sides are one."""
        return self.difference <= TOLERANCE and self.ids and self.ranking


def compared(package: str, ours: Scores, theirs: Scores) -> Comparison:
    """Compare two sides."""
    orders = [np.argsort(side.values, axis=1, kind="stable") for side in (ours, theirs)]
    return Comparison(
        package=f"{package} {theirs.version}",
        count=theirs.values.size,
        spread=float(np.ptp(theirs.values)),
        difference=float(np.abs(ours.values - theirs.values).max()),
        ids=ours.ids == theirs.ids,
        ranking=bool((orders[0] == orders[1]).all()),
    )


def table(rows: Sequence[Comparison]) -> str:
    """Return comparisons as text."""
    head = ("package", "scores", "spread", "max difference", "token ids", "ranking", "")
    cells: list[tuple[str, ...]] = [head]
    for row in rows:
        said = ["equal" if same else "DIFFERENT" for same in (row.ids, row.ranking)]
        verdict = "ok" if row.holds else f"FAILED: above {TOLERANCE:g}, or different"
        cells.append((row.package, f"{row.count}", f"{row.spread:.2e}", f"{row.difference:.2e}", *said, verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def pictures() -> list[UInt8[Tensor, "3 height width"]]:
    """Return images of odd sizes: patches of colour under fine noise."""
    import torch
    from torch.nn.functional import interpolate

    found = []
    with reproducible(0, torch.device("cpu")):
        for size in SIZES:
            patches = interpolate(torch.empty(1, 3, 4, 5).uniform_(), size, mode="bicubic")[0]
            image = patches + torch.empty(3, *size).normal_(0.0, 0.1)
            found.append((image.clamp(0, 1) * 255).round().to(torch.uint8))
    return found


def ours(package: str, folder: Path, images: Sequence[UInt8[Tensor, "3 height width"]]) -> Scores:
    """Return what our scorer says of each prompt and image."""
    import torch

    scorer, ids = _scorer(package, folder)
    scorer.load()
    prompts, group = list(PROMPTS), np.zeros(len(PROMPTS), dtype=np.int64)
    columns = [scorer((image.float() / 255).expand(len(prompts), *image.shape), prompts, group) for image in images]
    return Scores(version=torch.__version__, ids=ids(prompts), values=np.stack(columns, axis=1))


def _scorer(package: str, folder: Path) -> tuple[Any, Any]:
    """Return our scorer, and what makes its token ids of prompts."""
    if package == "hpsv2":
        from rewards.hpsv2 import HPSv2

        hps = HPSv2(weights=str(folder))
        return hps, lambda prompts: hps.towers[1](prompts).tolist()
    from rewards.imagereward import ImageReward, tokens

    reward = ImageReward(weights=str(folder))
    return reward, lambda prompts: tokens(reward.towers[1], prompts)[0].tolist()


def theirs(package: str, python: Path, folder: Path, images: Sequence[UInt8[Tensor, "3 height width"]]) -> Scores:
    """Return what the package says of each prompt and image, through files' pixels.

    Raises:
        RuntimeError: if its worker does not start, or refuses.
    """
    prompts, sent = list(PROMPTS), [{"png": _png(image)} for image in images]
    with running(package, python, folder) as url:
        version = asked(url, "/info")["info"]["revision"].partition("+")[0]
        ids = asked(url, "/tokens", {"prompts": prompts})["ids"]
        rows = []
        for prompt in prompts:
            answer = asked(url, "/score", {"prompts": [prompt] * len(sent), "images": sent})
            rows.append([np.nan if score is None else score for score in answer["scores"]])
    return Scores(version=version, ids=ids, values=np.array(rows, dtype=np.float64))


def _png(image: UInt8[Tensor, "3 height width"]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


@contextmanager
def running(package: str, python: Path, folder: Path) -> Iterator[str]:
    """Yield the address of a package's worker, which ends afterwards; it computes on the CPU, as we do.

    Raises:
        RuntimeError: if it does not start.
    """
    command = [str(python), str(WORKER), "--package", package, "--weights", str(folder), "--port", "0"]
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ARBOR_TOKEN")}
    env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env) as process,
    ):
        late = Timer(SECONDS, process.kill)
        late.start()
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            late.cancel()
            if found is None:
                process.wait()
                said.seek(0)
                why = " ".join(said.read().strip().splitlines()[-1:]) or "it said nothing"
                raise RuntimeError(f"the worker of {package} does not start by {python}: {why}")
            yield found.group()
        finally:
            late.cancel()
            process.terminate()


def asked(url: str, path: str, body: Any = None) -> Any:
    """Return what a worker answers.

    Raises:
        RuntimeError: if it refuses, or does not answer.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        status, said = client.asked(Address(url=url), path, data, token="", timeout=SECONDS, longest=LONGEST)
    except (NotThereError, UnavailableError) as error:
        raise RuntimeError(f"{url}{path}: {error}") from error
    if status != 200:
        raise RuntimeError(f"{url}{path} answers {status}: {said.decode(errors='replace')}")
    return json.loads(said)


def write(package: str, folder: Path, *, tiny: bool) -> None:
    """Write random weights of a package's model, in the published layout."""
    import torch

    from bench.scorers import tiny as tiny_scorers
    from bench.scorers.tiny.imagereward import FULL, make_imagereward

    if tiny:
        tiny_scorers.make(SCORERS[package], folder)
        return
    with reproducible(0, torch.device("cpu")):
        if package == "hpsv2":
            _write_hpsv2(folder)
        else:
            make_imagereward(folder, FULL)


def _write_hpsv2(folder: Path) -> None:
    import open_clip
    import torch
    from open_clip.model import CLIP

    config: Any = open_clip.get_model_config("ViT-H-14")
    state = {key: value.half() for key, value in CLIP(**config).state_dict().items()}
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")


def compare(package: str, env: Path, weights: Path | None, *, tiny: bool, scratch: Path | None) -> Comparison:
    """Compare one package with our scorer.

    Args:
        package: one of `SCORERS`.
        env: its environment.
        weights: a folder with the published files; `None` for random ones.
        tiny: whether random weights are of tiny models.
        scratch: where random weights are while this runs; `None` for the system's folder.
    """
    images = pictures()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="parity-") as made:
        folder = weights or Path(made)
        if weights is None:
            write(package, folder, tiny=tiny)
            gc.collect()
        here = ours(package, folder, images)
        gc.collect()  # one model at a time
        return compared(package, here, theirs(package, python_of(env), folder, images))


def placed(texts: Sequence[str], option: str) -> dict[str, Path]:
    """Return package -> folder.

    Raises:
        ValueError: for what is no package, or no folder.
    """
    found = {}
    for text in texts:
        package, sign, folder = text.partition("=")
        if not sign or package not in SCORERS or not Path(folder).is_dir():
            raise ValueError(f"{option} {text}: PACKAGE=DIR is wanted, of {' or '.join(SCORERS)} and a folder")
        found[package] = Path(folder)
    return found


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    about = "Compare our scores with those of the packages hpsv2 and image-reward, on the same weights."
    parser = argparse.ArgumentParser(prog="python -m rewards.parity", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--env", action="append", required=True, metavar="PACKAGE=DIR", help="as `python -m rewards.packages` made it")
    add("--weights", action="append", default=[], metavar="PACKAGE=DIR", help="published files, not random weights")
    add("--tiny", action="store_true", help="random weights of tiny models, not of the published sizes")
    add("--scratch", type=Path, metavar="DIR", help="where random weights are meanwhile (2 GB)")
    args = parser.parse_args(words)
    try:
        args.env, args.weights = placed(args.env, "--env"), placed(args.weights, "--weights")
        for package, env in args.env.items():
            if not python_of(env).is_file():
                remedy = f"`python -m rewards.packages {package} {env}` makes one"
                raise ValueError(f"--env {package}={env}: no environment is there; {remedy}")
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Compare, as the command line says."""
    args = parsed(words)
    rows = []
    for package, env in args.env.items():
        try:
            rows.append(compare(package, env, args.weights.get(package), tiny=args.tiny, scratch=args.scratch))
        except (RuntimeError, OSError) as error:
            print(f"{package}: {error}", file=sys.stderr)
            return 1
    sizes = ", ".join(f"{width} x {height}" for height, width in SIZES)
    print(f"{len(PROMPTS)} prompts, {len(SIZES)} images ({sizes})")
    print(table(rows))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
