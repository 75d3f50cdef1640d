"""The command line called in this process, in an empty working directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.run import main


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


Call = Callable[[Sequence[str]], Answer]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call(words)` is `bench words` in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def calling(words: Sequence[str]) -> Answer:
        status = main(words)
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return calling


PLUGIN = "from algorithms.dance import Dance\nARMS = {'my-dance': Dance(tf=0.5)}\n"
LOWER = """from bench.contract import RewardInfo
class Lower:
    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=False, revision="1", reference="")
    def __call__(self, images, prompts, group): return [0.0] * len(images)
REWARDS = {"lower": Lower}
"""
RAISES = """from algorithms.dance import Dance
class {0}(Dance):
    def plan(self, ctx): {1}
ARMS = {{'{2}': {0}()}}
"""
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file of none."""
INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that something is wrong with, and of some that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "plugin.py": PLUGIN,
        "twin.py": "from algorithms.mix import Mix\nARMS = {'my-dance': Mix()}\n",
        "dance_again.py": "from algorithms.dance import Dance\nARMS = {'dance': Dance()}\n",
        "raises.py": "raise RuntimeError('no licence')\n",
        "syntax.py": "def (:\n",
        "nothing.py": "ALGORITHMS = {}\n",
        "no_mapping.py": "ARMS = ['dance']\n",
        "no_algorithm.py": "ARMS = {'seven': 7}\n",
        "no_reward.py": "REWARDS = {'seven': 7}\n",
        "lower.py": LOWER,
        "plan_raises.py": RAISES.format("Rash", "return 1 / 0", "rash"),
        "plan_is_none.py": RAISES.format("Idle", "return None", "idle"),
        "list.yaml": "- steps\n- 10\n",
        "broken.yaml": "steps: [1,\n",
        "number_key.yaml": "7: 8\n",
        "unknown.yaml": "stepz: 8\n",
        "unknown_inner.yaml": "branch:\n  splitz: [0]\n",
        "preset_list.yaml": "preset: [quick]\n",
        "model_number.yaml": "model: 7\n",
        "digest.yaml": "model_digest: abc\n",
        "empty.txt": "",
        "one.txt": "a cat\n",
        "nul.txt": "a cat\na\0dog\n",
        "number.jsonl": '"a cat"\n7\n',
        "no_column.csv": "id,Prompt\n1,a cat\n",
        "nested.json": '{"train": ["a cat"]}',
        "no.parquet": "a cat\n",
        "few.txt": "".join(f"a picture of {n} cats\n" for n in range(3)),
        "prompts.txt": "".join(f"a picture of {n} cats\n" for n in range(60)),
        "file": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.txt").write_bytes("caf\u00e9\n".encode("latin-1") * 60)
    (folder / "latin.yaml").write_bytes("model: caf\u00e9\n".encode("latin-1"))
    write_models(folder)
    return folder


def write_models(folder: Path) -> None:
    """Write model folders: no pipeline, another family's, one without its VAE, damaged ones, and a whole one."""
    indexes = {
        "xl": json.dumps(INDEX | {"_class_name": "StableDiffusionXLPipeline"}),
        "partial": json.dumps(INDEX),
        "truncated": json.dumps(INDEX)[:40],
        "listed": "[]",
        "whole": json.dumps(INDEX),
        "hollow": json.dumps(INDEX),
    }
    (folder / "no_pipeline").mkdir()
    for name, text in indexes.items():
        (folder / name).mkdir()
        (folder / name / "model_index.json").write_text(text)
    configs = {
        "scheduler": {},
        "transformer": {"in_channels": 32},
        "vae": {"block_out_channels": [8, 8, 8]},
        "text_encoder": {},
    }
    for name in ("partial", "whole", "hollow"):
        for part, config in configs.items():
            if (name, part) == ("partial", "vae"):
                continue
            (folder / name / part).mkdir()
            if name != "hollow":
                file = "scheduler_config.json" if part == "scheduler" else "config.json"
                (folder / name / part / file).write_text(json.dumps(config))
            if name != "hollow" and part != "scheduler":
                weights = "model" if part == "text_encoder" else "diffusion_pytorch_model"
                (folder / name / part / f"{weights}.safetensors").write_bytes(NO_TENSORS)
