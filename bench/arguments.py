"""What is asked for on the command line -> a suite, with everything in it checked before anything is computed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from bench.config import Shared, check_layers, check_processes, make_cell, resolve
from bench.data import WORLDS, Prompts, load_prompts
from bench.datasets import pinned
from bench.environment import cache_folder, torchrun
from bench.models.catalog import ModelEntry
from bench.models.source import adapter_digest, check_size, described, dynamic_shift, entry_of, known_as, model_digest
from bench.parse import ArmSpec, field_types, key_value, parse_arms, replaced, split_top, weights
from bench.presets import PRESETS
from bench.record import name_and_weight
from bench.registry import InputError, Registry, load, nearest
from bench.scorers.lookup import named
from bench.suite import Suite, default_name

EPILOG = """\
examples:
  bench run --algos dance,mix,branch
  bench run --algos "dance(tf=0.6),branch(splits=[0,2,4,6],fusion=uniform)" --seeds 0,1,2
  bench run --algos all --preset paper --dry-run
  bench list
  bench diversity --algos dance,branch
  bench new-algorithm my-grpo
  bench check my_grpo.py
  bench theory
  bench prepare --model flux-dev --dry-run
  bench serve hpsv2.1 --port 8000
  bench report quick-tiny-flux-0123456789
"""


FLAGS = frozenset({"algos", "preset", "model", "seeds", "suite", "out", "jobs", "device", "parallel", "track"})
"""What is no shared key, so that --set refuses it."""
PARALLEL = ("ddp", "fsdp2")
TRACKERS = ("tensorboard", "wandb", "mlflow")
FIXED = frozenset({"model_digest", "prompts_digest", "scorer_revisions"})


def run_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench run`."""
    about = "Compare algorithms under one shared configuration: every arm x seed is a cell under runs/."
    parser = suite_parser("bench run", about, EPILOG)
    add = parser.add_argument
    add("--jobs", type=int, metavar="N", help="worker processes (default: one a GPU, or one a CPU core)")
    add("--parallel", choices=PARALLEL, help="how torchrun's processes hold the model: whole (default: ddp), or parts")
    add("--track", default="", metavar="A,B", help=f"tell trackers of every iteration: {', '.join(TRACKERS)}")
    add("--dry-run", action="store_true", help="print cells, configuration diff and cost; compute nothing")
    add("--json", action="store_true", help="with --dry-run: for programs")
    return parser


def diversity_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench diversity`."""
    about = "Compare the images that algorithms roll out on the untrained model; the first arm is the reference."
    parser = suite_parser("bench diversity", about, "example:\n  bench diversity --algos dance,branch\n")
    rollouts = "iterations of each seed to roll out, from the first (default: 4)"
    parser.add_argument("--rollouts", type=int, default=4, metavar="N", help=rollouts)
    return parser


def prepare_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench prepare`."""
    about = "Fetch what a run needs from the hub, and check it. Exit status 1 where something is missing."
    parser = argparse.ArgumentParser(prog="bench prepare", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--model", metavar="NAME", help="a registered name, a hub id owner/name[@revision], or a folder to check")
    add("--rewards", metavar="A,B", help="scorers whose files are wanted")
    add("--prompts", metavar="SET", help="hub:OWNER/NAME[@REVISION][:FILE], or a file to check")
    add("--plugin", type=Path, action="append", default=[], metavar="FILE", help="a file with REWARDS or MODELS")
    add("--dry-run", action="store_true", help="list files, sizes and licences; fetch nothing")
    return parser


def serve_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench serve`."""
    about = "Serve a scorer over HTTP (docs/remote.md): --rewards 'remote(http://HOST:PORT)' asks it. Ctrl-C ends it."
    parser = argparse.ArgumentParser(prog="bench serve", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("scorer", metavar="SCORER", help="as in --rewards: hpsv2.1, or 'pickscore(scale=logit)'")
    add("--plugin", type=Path, action="append", default=[], metavar="FILE", help="a file with REWARDS")
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen on; of one that other machines reach a token is wanted (default: 127.0.0.1)",
    )
    add("--port", type=int, default=8000, metavar="N", help="0 takes any that is free (default: 8000)")
    add("--token-file", default="", metavar="FILE", help="has the secret that clients show (default: $ARBOR_TOKEN)")
    add("--batch", type=int, default=32, metavar="N", help="most images of one call of the scorer (default: 32)")
    add("--alone", action="store_true", help="never join requests: no last bit hangs on who else asks")
    add("--max-bytes", type=int, default=2**28, metavar="N", help="longest request (default: 256 MiB)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    return parser


def suite_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser of what describes a suite, and where it lies and runs."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=raw, allow_abbrev=False
    )
    add = parser.add_argument
    add("--algos", required=True, metavar="A,B", help="arms: dance,mix,branch or dance(tf=0.6),...; all for every one")
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; default: the model's")
    add(
        "--model",
        metavar="NAME",
        help="a registered name, a hub id, or a folder in diffusers' layout (default: tiny-flux)",
    )
    add("--rewards", metavar="R", help="trained on: soft or a:0.7,b:0.3 (default: the model's)")
    prompts = "a text, .jsonl, .json, .csv or .parquet file, or hub:OWNER/NAME (default: the model's)"
    add("--eval-rewards", metavar="R", help="held-out scorers beside those trained on (default: the model's)")
    add("--prompts", metavar="SET", help=prompts)
    add("--seeds", metavar="0,1,2", help="one cell an arm and seed (default: the preset's)")
    add("--iterations", metavar="N", type=int)
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="steps=20, branch.splits=[0,4]"
    )
    add("--config", type=Path, metavar="FILE", help="YAML of the same keys; the command line wins over it")
    add("--plugin", type=Path, action="append", default=[], metavar="FILE", help="a file with ARMS, REWARDS or MODELS")
    add("--suite", metavar="NAME", help="folder under --out (default: preset-model-hash)")
    add("--open", action="store_true", help="let this suite hold a second shared configuration")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    return parser


def check_means(args: argparse.Namespace, suite: Suite) -> None:
    """Raise InputError unless this machine has what the run is to be made with."""
    _, count = torchrun()
    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: at least one worker is needed")
    if args.jobs is not None and count > 1:
        raise InputError(f"--jobs {args.jobs}: under torchrun the processes that it started do the work; leave it out")
    if args.parallel is not None and count == 1:
        raise InputError(
            f"--parallel {args.parallel} is of several processes: torchrun --nproc_per_node N -m bench.run ..."
        )
    check_processes(count, suite.shared)
    check_cache()
    for name in trackers(args):
        if name not in TRACKERS:
            raise InputError(f"--track {name}: no such tracker{nearest(name, TRACKERS)}")
        if find_spec(name) is None:
            raise InputError(f"--track {name}: pip install 'arbor-bench[trackers]' brings it")


def check_cache() -> None:
    """Raise InputError unless what prompts are encoded to can be kept."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        raise InputError(
            f"encoded prompts cannot be kept in {folder}: {error.strerror}; set ARBOR_CACHE to another folder"
        ) from error


def trackers(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the trackers that were named."""
    return tuple(name.strip() for name in args.track.split(",") if name.strip())


def make_suite(args: argparse.Namespace) -> Suite:
    """Return the suite that the arguments describe, everything in it checked.

    Raises:
        InputError: for anything unknown, ill-typed or impossible.
    """
    file = config_file(args.config)
    algorithms, rewards = load("algorithms", args.plugin), load("rewards", args.plugin)
    from_file = {key: file.pop(key, None) for key in ("model", "preset")}
    model = args.model or from_file["model"] or Shared().model
    if not isinstance(model, str):
        raise InputError(f"model={model!r}: text is wanted")
    entry = known_as(model, args.plugin)
    if entry_of(model, args.plugin) is None:
        described(model, args.plugin)  # there is such a model
    name = args.preset or from_file["preset"] or (entry.preset if entry else "paper")
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{nearest(str(name), PRESETS)}")
    preset = PRESETS[name]
    keys, layers = sort_settings(
        [model_keys(entry), preset.shared, {k: preset.arms[k] for k in preset.arms}, file, flags(args)]
    )
    check_layers(layers, algorithms)
    for key in FIXED & keys.keys():
        raise InputError(f"{key} cannot be given: it is set by the program, from the contents of what is named")
    if keys.get("shift") == "dynamic":
        sized = replaced(Shared(), {"resolution": keys.get("resolution", Shared().resolution)}, "run")
        keys["shift"] = dynamic_shift(described(model, args.plugin), sized.height, sized.width)
    shared = replaced(Shared(), keys | {"model": model}, "run")
    specs = all_arms(algorithms) if args.algos == "all" else parse_arms(args.algos)
    for where, why in algorithms.broken.items() if args.algos == "all" else ():
        print(f"bench: {where} does not load, and is left out: {why}", file=sys.stderr)
    arms = [(spec, resolve(spec, shared, layers, algorithms)) for spec in specs]
    shared, written = check_shared(shared, rewards, args.plugin)  # last: it may download prompts
    plugins = [str(path.resolve()) for path in args.plugin]
    title = default_name(name, shared) if args.suite is None else args.suite
    if not title or Path(title).name != title or title == "..":
        raise InputError(f"--suite {title!r}: a plain name is wanted, of a folder under --out")
    cells = [
        dataclasses.replace(make_cell(title, spec, seed, shared, algorithm, plugins), scorers=written)
        for seed in seeds(args.seeds, preset.seeds)
        for spec, algorithm in arms
    ]
    return Suite(folder=args.out / title, preset=name, shared=shared, cells=tuple(cells))


def sort_settings(sources: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return shared keys and settings by algorithm, later sources winning.

    A source's `name.key`, or a mapping under `name`, is a setting of that algorithm.
    """
    shared: dict[str, Any] = {}
    layers: dict[str, dict[str, Any]] = {}
    known = field_types(Shared)
    for source in sources:
        for key, value in source.items():
            name, dot, inner = key.partition(".")
            if f"{name}_{inner}" in known:  # model.weights
                shared[f"{name}_{inner}"] = value
            elif dot:
                layers.setdefault(name, {})[inner] = value
            elif key not in known and isinstance(value, Mapping):
                layers.setdefault(key, {}).update(value)
            else:
                shared[key] = value
    return shared, layers


def model_keys(entry: ModelEntry | None) -> dict[str, Any]:
    """Return the shared keys that follow from the model."""
    if entry is None:
        return {"resolution": 512, "rewards": (), "eval_rewards": (), "features": "", "prompts": ""}
    keys = ("resolution", "frames", "guidance", "rewards", "eval_rewards", "features")
    named = {key: getattr(entry, key) for key in keys}
    return named | {"prompts": entry.prompts if entry.prompts in WORLDS else ""} | dict(entry.means)


def flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line."""
    found: dict[str, Any] = {}
    for key in ("rewards", "eval_rewards"):
        if getattr(args, key) is not None:
            found[key] = split_top(getattr(args, key))
    if args.iterations is not None:
        found["iterations"] = args.iterations
    if args.prompts is not None:
        found["prompts"] = args.prompts
    given = dict(map(key_value, args.settings))
    for key in FLAGS & given.keys():
        raise InputError(f"--set {key}=...: {key} has a flag of its own, --{key}")
    return found | given


def config_file(path: Path | None) -> dict[str, Any]:
    """Return the mapping of a YAML file; nothing without one."""
    if path is None:
        return {}
    if not path.is_file():
        raise InputError(f"--config {path}: no such file")
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"--config {path}: a mapping of keys to values is wanted")
    for key in [*value, *(inner for part in value.values() if isinstance(part, dict) for inner in part)]:
        if not isinstance(key, str):
            raise InputError(f"--config {path}: {key!r} is no key; keys are words")
    return value


def check_shared(shared: Shared, rewards: Registry, plugins: Sequence[Path]) -> tuple[Shared, Mapping[str, str]]:
    """Return the shared keys with the digests of what they name, after checking that all of it exists.

    Scorers are called in them as in records; how those were written is returned beside.
    """
    scorers, labels = named((*shared.rewards, *shared.eval_rewards, *filter(None, [shared.features])), rewards)
    trained, heldout = labels[: len(shared.rewards)], labels[len(shared.rewards) :][: len(shared.eval_rewards)]
    shared = dataclasses.replace(shared, rewards=tuple(trained), features=labels[-1] if shared.features else "")
    judged = tuple(dict.fromkeys((*weights(trained), *check_unweighted(heldout))))
    if shared.features and not hasattr(scorers[shared.features], "features"):
        known = [name for name, value in rewards.values.items() if hasattr(value, "features")]
        raise InputError(
            f"features={shared.features!r} has no features of images; scorers that have: {', '.join(known)}"
        )
    if not shared.prompts:
        raise InputError(f"model {shared.model!r} has no prompts of its own; give --prompts a file or hub:OWNER/NAME")
    source = described(shared.model, plugins)
    adapter_digest(source.family)  # it is there
    contents = model_digest(shared.model, plugins, weights=shared.model_weights)
    check_size(source, shared.height, shared.width, shared.frames)
    check_media(source.family.media, scorers.found)
    check_raised(weights(trained), scorers.found)
    name = pinned(shared.prompts)
    prompts = load_prompts(name, framed=source.family.first_frame)
    if source.family.first_frame:
        check_first_frames(shared.model, prompts)
    shared = dataclasses.replace(
        shared,
        model_digest=contents,
        prompts=name,
        prompts_digest=prompts.digest,
        scorer_revisions=scorers.revisions(),
        eval_rewards=judged,
    )
    return shared, scorers.written


def check_unweighted(names: Sequence[str]) -> Sequence[str]:
    """Return the held-out scorers, if none has a weight."""
    for name in names:
        if name_and_weight(name)[1] is not None:
            raise InputError(f"held-out scorer {name!r}: weights are of --rewards, what is trained on")
    return names


def check_raised(names: Iterable[str], scorers: Mapping[str, Any]) -> None:
    """Raise InputError for a reward that is better when it is lower: training raises what it is given."""
    for name in names:
        if not scorers[name].info.higher_is_better:
            raise InputError(f"{name!r} is better when lower, and training raises rewards: train on its negative")


def check_media(media: str, scorers: Mapping[str, Any]) -> None:
    """Raise InputError for a scorer of images if the model makes videos, and the other way round."""
    for name, scorer in scorers.items():
        if scorer.info.media != media:
            fitting = [name for name, one in load("rewards").values.items() if media_of(one) == media]
            known = f"; scorers of {media}s: {', '.join(fitting)}" if fitting else ""
            raise InputError(f"{name!r} scores {scorer.info.media}s, and the model makes {media}s{known}")


def check_media_alike(scorers: Mapping[str, Any]) -> str:
    """Return what the scorers score.

    Raises:
        InputError: if some score images and others videos.
    """
    of = {scorer.info.media: name for name, scorer in scorers.items()}
    if len(of) > 1:
        raise InputError(f"{of['image']!r} scores images and {of['video']!r} videos: ask for them apart")
    return next(iter(of))


def media_of(kind: Any) -> str:
    """Return what a class of scorers scores; empty where its options say it."""
    return getattr(kind.info, "media", "")


def check_first_frames(model: str, prompts: Prompts) -> None:
    """Raise InputError unless every prompt has an image."""
    without = [p for p in (*prompts.train, *prompts.tune, *prompts.heldout) if p not in prompts.images]
    if without:
        raise InputError(
            f"model {model!r} makes videos of a first frame: --prompts needs a column `image`, with a file for every "
            f"prompt; {len(without)} have none"
        )


def all_arms(algorithms: Registry) -> list[ArmSpec]:
    """Return every registered arm."""
    return [ArmSpec(label=name, algo=name, changes={}) for name in algorithms.values]


def seeds(text: str | None, default: Sequence[int]) -> list[int]:
    """Return the seeds of `0,1,2`."""
    if text is None:
        return list(default)
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or min(found) < 0 or max(found) >= 2**63:
        raise InputError(f"--seeds {text!r}: distinct whole numbers from 0 on, below 2**63, are wanted, as in 0,1,2")
    return found


def parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse; a usage error is one line, not a page."""
    parser.error = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    return parser.parse_args(words)


def _refuse(message: str) -> None:
    raise InputError(f"{message}; see --help")
