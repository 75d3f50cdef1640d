"""Serve the scores of the package hpsv2, or image-reward, by the python of an environment that has it.

One file of the standard library and that package. `python -m rewards.packages` makes the environment; then

    DIR/bin/python worker.py --package hpsv2 --weights FOLDER --port 8001

listens on this machine alone, and `remote(http://127.0.0.1:8001)` is a scorer. FOLDER has the published files under
their own names; nothing is fetched. If ARBOR_TOKEN is set, requests must carry it. Beyond the protocol there is
`POST /tokens {"prompts": [...]}`, which answers the ids that the package makes of them.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import functools
import hashlib
import hmac
import importlib
import io
import json
import math
import os
import sys
import threading
import types
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROTOCOL = 1
MAX_ITEMS = 256
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 2**26
"""Of an image: what claims more is not decoded."""
SECONDS = 60.0
"""That a request may take to arrive."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
SHARED = {"higher_is_better": True, "media": "image", "pixels": "uint8", "groupwise": False, "preprocessing": "its own"}


class RefusedError(Exception):
    """A request that gets another answer than 200."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def published(folder: Path, *names: str) -> list[Path]:
    """Return the files of a folder.

    Raises:
        FileNotFoundError: one is not there.
    """
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: `--weights` names a folder with {', '.join(names)}")
    return [folder / name for name in names]


def beside(folder: Path, name: str) -> Any:
    """Return what a JSON file says, if it is there: sizes of a tiny checkpoint."""
    return json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else None


def imported(module: str) -> Any:
    """Return a module of a package. hpsv2 takes a name from turtle that it does not use; Pythons without Tk lack it.

    Raises:
        ImportError: the package is not here, or not whole.
    """
    try:
        import turtle  # noqa: F401
    except ImportError:
        sys.modules["turtle"] = types.ModuleType("turtle")
        sys.modules["turtle"].__dict__["forward"] = None
    try:
        return importlib.import_module(module)
    except FileNotFoundError as error:
        raise ImportError(f"{error.filename} is missing, which the package's wheel lacks") from error


class Hpsv2:
    """`hpsv2.img_score.score` of version 2.1; the package's own default is 2.0."""

    name = "hpsv2-package"
    distribution = "hpsv2"
    module = "hpsv2.img_score"
    info = {  # noqa: RUF012
        "unit": "cosine",
        "low": -1.0,
        "high": 1.0,
        "reference": "Wu et al., arXiv 2306.09341; the package hpsv2 itself",
        "model": "CLIP ViT-H-14 of hpsv2, HPS_v2.1_compressed.pt; in half precision on a GPU, in fp32 without",
    }

    def __init__(self, weights: Path) -> None:
        """Load the checkpoint once, and nothing else: the package would read it anew at each call.

        Raises:
            FileNotFoundError: it is not in the folder.
        """
        (self.checkpoint,) = self.files = published(weights, "HPS_v2.1_compressed.pt")
        self.package = imported(self.module)
        factory = imported("hpsv2.src.open_clip.factory")
        sizes = beside(weights, "open_clip_config.json")
        if sizes:
            factory._MODEL_CONFIGS["ViT-H-14"] = sizes["model_cfg"]
        build = self.package.create_model_and_transforms

        def without_laion(name: str, pretrained: str, **rest: Any) -> Any:  # noqa: ARG001
            """Build the model alone: the package fetches 3.9 GB of weights, which the checkpoint then replaces."""
            return build(name, None, **rest)

        self.package.create_model_and_transforms = without_laion
        self.package.initialize_model()
        model = self.package.model_dict["model"]
        torch = imported("torch")
        model.load_state_dict(torch.load(self.checkpoint, map_location="cpu")["state_dict"])
        model.load_state_dict = lambda state: None  # noqa: ARG005
        torch.load = lambda *args, **rest: {"state_dict": None}  # noqa: ARG005

    def score(self, prompt: str, images: list[Any]) -> list[float]:
        """Return the package's scores of images."""
        return [float(value) for value in self.package.score(images, prompt, cp=str(self.checkpoint))]

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the package's ids of prompts."""
        return self.package.get_tokenizer("ViT-H-14")(list(prompts)).tolist()


class ImageReward:
    """`ImageReward.load(...).score`."""

    name = "image-reward-package"
    distribution = "image-reward"
    module = "ImageReward.utils"
    info = {  # noqa: RUF012
        "unit": "standard deviations",
        "low": -3.0,
        "high": 3.0,
        "reference": "Xu et al., arXiv 2304.05977; the package image-reward itself",
        "model": "BLIP of image-reward in fp32, ImageReward.pt",
    }

    def __init__(self, weights: Path) -> None:
        """Load the checkpoint, strictly: the package would leave out what does not fit.

        Raises:
            FileNotFoundError: a file is not in the folder.
        """
        self.files = published(weights, "ImageReward.pt", "med_config.json", "vocab.txt")
        checkpoint, sizes, words = map(str, self.files)
        package = imported(self.module)
        blip = imported("ImageReward.models.BLIP.blip")
        bert = blip.BertTokenizer
        # The package asks the hub for this vocabulary.
        blip.BertTokenizer = types.SimpleNamespace(from_pretrained=lambda name: bert(words))  # noqa: ARG005
        vision = beside(weights, "vision_config.json")
        if vision:
            self._resize(vision, beside(weights, "med_config.json")["hidden_size"])
        whole = package.ImageReward

        class Strict(whole):
            def load_state_dict(self, state: Any, strict: bool = True) -> Any:  # noqa: ARG002
                return super().load_state_dict(state, strict=True)

        package.ImageReward = Strict
        self.model = package.load(checkpoint, med_config=sizes)

    @staticmethod
    def _resize(sizes: dict[str, Any], width: int) -> None:
        """Let the package build a tiny model: the published sizes are written into its code."""
        names = {"image_size": "img_size", "patch_size": "patch_size", "hidden_size": "embed_dim"}
        names |= {"num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
        vit, reward = imported("ImageReward.models.BLIP.vit"), imported("ImageReward.ImageReward")
        vision = vit.VisionTransformer(**{theirs: sizes[ours] for ours, theirs in names.items()})
        pretrained, head = imported("ImageReward.models.BLIP.blip_pretrain"), reward.MLP
        pretrained.create_vit = lambda *args: (vision, sizes["hidden_size"])  # noqa: ARG005
        reward.MLP = lambda published: head(width)  # noqa: ARG005

    def score(self, prompt: str, images: list[Any]) -> list[float]:
        """Return the package's scores of images: its way with a list wants two."""
        with imported("torch").no_grad():
            scores = self.model.score(prompt, images if len(images) > 1 else images[0])
        return scores if isinstance(scores, list) else [scores]

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the package's ids of prompts."""
        found = self.model.blip.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=35)
        return found["input_ids"]


PACKAGES: dict[str, Any] = {"hpsv2": Hpsv2, "image-reward": ImageReward}


class Service:
    """What the server answers, without its HTTP."""

    def __init__(self, scorer: Any) -> None:
        """Describe a scorer that is loaded."""
        self.scorer = scorer
        self.turn = threading.Lock()
        """A model is used by one request at a time."""
        info = {**scorer.info, **SHARED, "revision": f"{version(scorer.distribution)}+{digest(scorer.files)}"}
        limits = {"max_items": MAX_ITEMS, "max_bytes": MAX_BYTES}
        self.info = {"protocol": PROTOCOL, "name": scorer.name, "info": info, **limits}

    def tokens(self, body: Any) -> dict[str, Any]:
        """Return the ids of prompts."""
        with self.turn:
            return {"ids": self.scorer.tokens(prompts_of(body))}

    def score(self, body: Any) -> dict[str, Any]:
        """Return a score for each image, null where the package gave no number; RefusedError, if it gave none."""
        prompts = prompts_of(body)
        if "videos" in body:
            raise RefusedError(422, f"{self.scorer.name} scores images, not videos")
        sent = body.get("images")
        if not isinstance(sent, list) or len(sent) != len(prompts):
            raise RefusedError(400, f"'images' must be a list of {len(prompts)}, one a prompt")
        images = [decoded(image) for image in sent]
        found: dict[int, float | str] = {}
        with self.turn:
            for prompt in dict.fromkeys(prompts):
                rows = [row for row, text in enumerate(prompts) if text == prompt]
                found.update(zip(rows, self._scored(prompt, [images[r] for r in rows]), strict=True))
        values = [found[row] for row in range(len(images))]
        failures = [f"image {row}: {' '.join(v.split())[:200]}" for row, v in enumerate(values) if isinstance(v, str)]
        if len(failures) == len(images):
            raise RefusedError(422, "; ".join(failures))
        scores = [None if isinstance(value, str) else value for value in values]
        whose = {"name": self.scorer.name, "revision": self.info["info"]["revision"]}
        return {"scores": scores, "failures": failures, **whose}

    def _scored(self, prompt: str, images: list[Any]) -> list[float | str]:
        """Return each image's score, or why it has none; where the package raises, each image is asked for alone."""
        try:
            scores = self.scorer.score(prompt, images)
        except Exception as error:  # noqa: BLE001  # whatever the package raises
            if len(images) > 1:
                return [self._scored(prompt, [image])[0] for image in images]
            return [f"{type(error).__name__}: {error}"]
        return [score if math.isfinite(score) else "the package gave no finite number" for score in scores]


def digest(files: Sequence[Path]) -> str:
    """Return what tells one set of weights from another."""
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:12]


def prompts_of(body: Any) -> list[str]:
    """Return a request's prompts; RefusedError, if there are none, or too many."""
    prompts = body.get("prompts") if isinstance(body, dict) else None
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise RefusedError(400, "an object with 'prompts', a list of strings, is wanted")
    if len(prompts) > MAX_ITEMS:
        raise RefusedError(413, f"{len(prompts)} prompts: at most {MAX_ITEMS} a request")
    return prompts


def decoded(image: Any) -> Any:
    """Return an image of a request, as PIL has it; RefusedError, if it is none."""
    from PIL import Image

    kinds = [kind for kind in ("png", "jpeg", "raw") if isinstance(image, dict) and isinstance(image.get(kind), str)]
    if len(kinds) != 1:
        raise RefusedError(400, "an image is an object with one of 'png', 'jpeg' and 'raw', in base64")
    try:
        data = base64.b64decode(image[kinds[0]], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"an image is not base64: {error}") from error
    if kinds[0] == "raw":
        return raw(image, data)
    try:
        opened = Image.open(io.BytesIO(data), formats=[kinds[0].upper()])
        if opened.mode != "RGB" or opened.width * opened.height > MAX_PIXELS:
            found = f"{opened.mode} of {opened.width} x {opened.height}"
            raise RefusedError(422, f"an RGB image of at most {MAX_PIXELS} pixels is wanted, not {found}")
        opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RefusedError(400, f"an image is no {kinds[0]}: {error}") from error
    return opened


def raw(image: dict[str, Any], data: bytes) -> Any:
    """Return an image that was sent as numbers; RefusedError, if it is none."""
    from PIL import Image

    shape = image.get("shape")
    if image.get("dtype") != "uint8":
        raise RefusedError(422, f"8-bit images are wanted, not {image.get('dtype')!r}, as /info says")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise RefusedError(400, f"'shape' must be [height, width, 3], not {shape!r}"[:200])
    if shape[2] != 3 or math.prod(shape) != len(data):
        raise RefusedError(400, f"{len(data)} bytes are no image of shape {shape}")
    return Image.frombytes("RGB", (shape[1], shape[0]), data)


class Handler(BaseHTTPRequestHandler):
    """One connection; `service` and `token` are set by `serve`."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS
    service: Service
    token = ""

    def do_GET(self) -> None:
        """Answer /health and /info."""
        pages = {"/health": lambda: {"status": "ok", "protocol": PROTOCOL}, "/info": lambda: self.service.info}
        self._answer(pages)

    def do_POST(self) -> None:
        """Answer /score and /tokens."""
        verbs = {"/score": self.service.score, "/tokens": self.service.tokens}
        self._answer({path: lambda verb=verb: verb(self._body()) for path, verb in verbs.items()})

    def _answer(self, pages: dict[str, Callable[[], dict[str, Any]]]) -> None:
        try:
            if self.path not in pages:
                raise RefusedError(404, f"there are {', '.join(pages)} here, and no {self.path[:80]}")
            given = self.headers.get("Authorization", "")
            if self.path != "/health" and not hmac.compare_digest(given.encode(), self._wanted(given)):
                raise RefusedError(401, "the token is missing or wrong: it is what ARBOR_TOKEN was as this started")
            self._send(200, pages[self.path]())
        except RefusedError as error:
            self._fail(error.status, str(error))
        except Exception as error:  # noqa: BLE001  # whatever the package raises
            self._fail(500, f"{type(error).__name__}: {error}")

    def _wanted(self, given: str) -> bytes:
        return (f"Bearer {self.token}" if self.token else given).encode()

    def _fail(self, status: int, why: str) -> None:
        self.close_connection = True  # the body may be unread
        self._send(status, {"error": " ".join(why.split())[:500]})

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RefusedError(411, "a Content-Length is wanted")
        if int(length) > MAX_BYTES:
            raise RefusedError(413, f"{length} bytes: at most {MAX_BYTES} a request")
        try:
            read = self.rfile.read(int(length))
        except TimeoutError as error:
            raise RefusedError(408, f"the {length} bytes of the body did not arrive") from error
        if len(read) != int(length):
            raise RefusedError(400, f"the body has {len(read)} bytes and not {length}")
        try:
            return json.loads(read)
        except ValueError as error:
            raise RefusedError(400, f"the body is no JSON: {error}") from error

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer, allow_nan=False).encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing of each request."""


def serve(scorer: Any, port: int) -> None:
    """Answer requests until interrupted, and say where."""
    handler = type("Bound", (Handler,), {"service": Service(scorer), "token": os.environ.get("ARBOR_TOKEN", "")})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"{scorer.name} listens on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


def main() -> int:
    """Check, load and serve a package, as the command line says."""
    parser = argparse.ArgumentParser(description="Serve the scores of hpsv2 or image-reward.", allow_abbrev=False)
    parser.add_argument("--package", choices=list(PACKAGES), required=True)
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="has the published files under their names")
    parser.add_argument("--port", type=int, default=0, help="0, the default, picks one")
    parser.add_argument("--check", action="store_true", help="import the package, say its version and end")
    args = parser.parse_args()
    if not args.check and args.weights is None:
        parser.error("--weights FOLDER is wanted")
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    kind = PACKAGES[args.package]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where both packages chat
            imported(kind.module)
            torch = imported("torch")  # both packages would unpickle whatever a checkpoint has
            torch.load = functools.partial(torch.load, weights_only=True)
            scorer = None if args.check else kind(args.weights)
    except ImportError as error:
        remedy = f"`python -m rewards.packages {args.package} DIR` makes an environment that has it"
        print(f"{args.package} does not import by {sys.executable}: {error}; {remedy}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if scorer is None:
        print(f"{kind.distribution} {version(kind.distribution)}")
    else:
        serve(scorer, args.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
