"""The command line: `python -m bench.run --algos dance,mix,branch`. The only file that turns names into cells.

Exit status: 0 done, 1 a cell failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench import scaffold
from bench.config import (
    ArmSpec,
    Shared,
    check_layers,
    make_cell,
    parse_arms,
    resolve,
    weights,
)
from bench.data import load_prompts
from bench.hosts import class_of, of_class, settings
from bench.models.catalog import ModelEntry
from bench.models.source import check_side, entry_of, model_digest, resolve_model
from bench.parse import field_types, key_value, replaced
from bench.presets import PRESETS
from bench.preview import dry_run, spoken
from bench.registry import InputError, Registry, load, nearest
from bench.suite import Suite, check_closed, default_name

EPILOG = """\
examples:
  bench run --algos dance,mix,branch
  bench run --algos "dance(tf=0.6),branch(splits=[0,2,4,6],fusion=uniform)" --seeds 0,1,2
  bench run --algos all --preset paper --dry-run
  bench list
  bench new-algorithm my-grpo
  bench check my_grpo.py
  bench report quick-tiny-flux-0123456789
"""


FLAGS = frozenset({"algos", "preset", "model", "seeds", "suite", "out", "jobs", "device"})
"""What is no shared key, so that --set refuses it."""
FIXED = frozenset({"model_digest", "prompts_digest", "scorer_revisions"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbs = {"run": run, "list": list_plugins, "report": report, "check": check, "new-algorithm": new_algorithm}
    verb = words.pop(0) if words and words[0] in verbs else "run"
    try:
        return verbs[verb](words)
    except InputError as error:
        print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def run_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench run`."""
    parser = argparse.ArgumentParser(
        prog="bench run",
        description="Compare algorithms under one shared configuration: every arm x seed is a cell under runs/.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--algos", required=True, metavar="A,B", help="arms: dance,mix,branch or dance(tf=0.6),...; all for every one")
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; default: the model's")
    add("--model", metavar="NAME", help="a registered name, or a folder in diffusers' layout (default: tiny-flux)")
    add("--rewards", metavar="R", help="trained on: soft or a:0.7,b:0.3 (default: the model's)")
    add("--prompts", metavar="FILE", help="a text file, one prompt a line (default: the model's)")
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
    add("--jobs", type=int, metavar="N", help="worker processes (default: one a GPU, or one a CPU core)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--dry-run", action="store_true", help="print cells, configuration diff and cost; compute nothing")
    add("--json", action="store_true", help="with --dry-run: for programs")
    return parser


def run(words: Sequence[str]) -> int:
    """Run a suite's missing cells, then report."""
    args = _parsed(run_parser(), words)
    if args.json and not args.dry_run:
        raise InputError("--json goes with --dry-run")
    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: at least one worker is needed")
    suite = make_suite(args)
    preview = dry_run(suite.cells, args.out if args.dry_run else None)
    check_closed(suite.folder, suite.shared, open_suite=args.open)
    if args.dry_run:
        missing = f"suite {suite.folder}, preset {suite.preset}: {len(suite.missing())} cells to run"
        print(json.dumps(preview, indent=1) if args.json else f"{missing}\n{spoken(preview)}")
        return 0
    check_side(resolve_model(suite.shared.model, args.plugin), suite.shared.resolution)
    return execute(suite, args.jobs, args.device, preview["alike"], open_suite=args.open)


def execute(suite: Suite, jobs: int | None, device: str, alike: Mapping[str, str], *, open_suite: bool) -> int:
    """Run what is missing, print the report's table; return the exit status."""
    from rich.console import Console

    from bench import display
    from bench import suite as grid

    try:
        second = grid.write(suite, open_suite=open_suite)
    except OSError as error:
        raise InputError(f"{suite.folder} cannot be written: {error.strerror}; choose another --out") from error
    if second:
        print(f"bench: suite {suite.folder.name} is open: it now holds a second shared configuration", file=sys.stderr)
    console = Console()
    missing = suite.missing()
    if missing:
        host = grid.machine(jobs, device)
        print(f"{suite.folder}: {len(missing)} of {len(suite.cells)} cells to run, {host.jobs} at a time", flush=True)
        for arm, twin in alike.items():
            print(
                f"bench: {arm} samples, credits and selects exactly as {twin} does under these settings",
                file=sys.stderr,
            )
        workers = grid.start(suite, host, device)
        display.watching(suite, console, lambda watch: grid.finish(workers, watch))
    for cell, what in grid.remarks(suite).items():
        print(f"bench: {cell}: {what}", file=sys.stderr)
    failed = grid.failures(suite)
    for cell, why in failed.items():
        print(f"bench: {cell} failed: {why}", file=sys.stderr)
    if len(failed) < len(suite.cells):
        show_report(suite.folder)
    return 1 if failed else 0


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
    entry = entry_of(model, args.plugin)
    if entry is None:
        resolve_model(model, args.plugin)
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
    shared = replaced(Shared(), keys | {"model": model}, "run")
    shared = check_shared(shared, rewards, args.plugin)
    specs = all_arms(algorithms) if args.algos == "all" else parse_arms(args.algos)
    for where, why in algorithms.broken.items() if args.algos == "all" else ():
        print(f"bench: {where} does not load, and is left out: {why}", file=sys.stderr)
    arms = [(spec, resolve(spec, shared, layers, algorithms)) for spec in specs]
    plugins = [str(path.resolve()) for path in args.plugin]
    title = default_name(name, shared) if args.suite is None else args.suite
    if not title or Path(title).name != title or title == "..":
        raise InputError(f"--suite {title!r}: a plain name is wanted, of a folder under --out")
    cells = [
        make_cell(title, spec, seed, shared, algorithm, plugins)
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
            if dot:
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
    named = {key: getattr(entry, key) for key in ("resolution", "guidance", "rewards", "eval_rewards", "features")}
    return named | {"prompts": entry.prompts if entry.prompts == "world" else ""}


def flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line."""
    found: dict[str, Any] = {}
    if args.rewards is not None:
        found["rewards"] = [item.strip() for item in args.rewards.split(",") if item.strip()]
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


def check_shared(shared: Shared, rewards: Registry, plugins: Sequence[Path]) -> Shared:
    """Return the shared keys with the digests of what they name, after checking that all of it exists."""
    judged = tuple(dict.fromkeys((*weights(shared.rewards), *shared.eval_rewards)))
    scorers = {name: rewards.get(name) for name in (*judged, *([shared.features] if shared.features else []))}
    if shared.features and not hasattr(scorers[shared.features], "features"):
        known = [name for name, value in rewards.values.items() if hasattr(value, "features")]
        raise InputError(
            f"features={shared.features!r} has no features of images; scorers that have: {', '.join(known)}"
        )
    if not shared.prompts:
        raise InputError(f"model {shared.model!r} has no prompts of its own; give --prompts a text file")
    if entry_of(shared.model, plugins) is None:
        check_side(resolve_model(shared.model, plugins), shared.resolution)
    return dataclasses.replace(
        shared,
        model_digest=model_digest(shared.model, plugins),
        prompts_digest=load_prompts(shared.prompts).digest,
        scorer_revisions=tuple(f"{name}@{scorer.info.revision}" for name, scorer in scorers.items()),
        eval_rewards=judged,
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


def list_plugins(words: Sequence[str]) -> int:
    """Print algorithms, models, rewards and presets, a line each."""
    parser = argparse.ArgumentParser(prog="bench list", description="What has a name.", allow_abbrev=False)
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE")
    args = _parsed(parser, words)
    algorithms, rewards, models = (load(kind, args.plugin) for kind in ("algorithms", "rewards", "models"))
    print("algorithms")
    for name, value in algorithms.values.items():
        mine, base = settings(value), settings(of_class(class_of(value), algorithms))
        how = ", ".join(f"{key}={mine[key]}" for key in mine if mine[key] != base[key])
        print(f"  {name:24} {value.info.paper}{f' [{how}]' if how else ''}")
    print("rewards")
    for name, value in rewards.values.items():
        info = value.info
        print(f"  {name:24} {(value.__doc__ or ' ').splitlines()[0]} [{info.unit}, {info.low:g} to {info.high:g}]")
    print("models")
    for name, value in models.values.items():
        print(f"  {name:24} {value.summary}")
    print("presets")
    for name, value in PRESETS.items():
        print(f"  {name:24} {value.summary}")
    for registry in (algorithms, rewards, models):
        for where, why in registry.broken.items():
            print(f"bench: {where} does not load: {why}", file=sys.stderr)
    return 0


def check(words: Sequence[str]) -> int:
    """Hold an algorithm to the contract; return 1 if it does not keep it."""
    parser = argparse.ArgumentParser(prog="bench check", description="Check an algorithm.", allow_abbrev=False)
    parser.add_argument("target", help="an arm as in --algos, or a file with ARMS")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE")
    args = _parsed(parser, words)
    load("algorithms", args.plugin)  # names are checked before torch is imported
    from bench.conformance import subjects
    from bench.conformance.run import check_all

    return 1 if check_all(subjects(args.target, args.plugin), print) else 0


def new_algorithm(words: Sequence[str]) -> int:
    """Write an algorithm to start from."""
    about = "Write a commented algorithm that runs at once, into NAME.py."
    parser = argparse.ArgumentParser(prog="bench new-algorithm", description=about, allow_abbrev=False)
    parser.add_argument("name", help="as in --algos: my-grpo")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    args = _parsed(parser, words)
    file = scaffold.new_algorithm(args.name, args.out)
    print(f"{file} is an algorithm; it runs as it stands:")
    print(f"  bench check {file}")
    print(f"  bench run --algos dance,{args.name} --plugin {file} --preset smoke")
    return 0


def report(words: Sequence[str]) -> int:
    """Rebuild the report of a suite from its records."""
    parser = argparse.ArgumentParser(prog="bench report", description="Rebuild a suite's report.", allow_abbrev=False)
    parser.add_argument("suite", help="a suite's name under --out, or its folder")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR")
    args = _parsed(parser, words)
    folder = next((f for f in (args.out / args.suite, Path(args.suite)) if (f / "suite.yaml").is_file()), None)
    if folder is None:
        known = sorted(path.parent.name for path in args.out.glob("*/suite.yaml"))
        raise InputError(f"no suite {args.suite!r} under {args.out}{nearest(args.suite, known) if known else ''}")
    show_report(folder)
    return 0


def show_report(folder: Path) -> None:
    """Write a suite's report under ./reports and print its table."""
    from reports.build import build

    try:
        built = build(folder, Path("reports"))
    except json.JSONDecodeError as error:
        raise InputError(f"a record under {folder} is no JSON ({error}); delete that cell and run again") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    except (KeyError, TypeError, yaml.YAMLError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"a record under {folder} is damaged ({why}); delete that cell and run again") from error
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; the report goes to ./reports of this folder") from error
    print("\n".join(built.lines))
    print(f"report: {built.page}")


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse; a usage error is one line, not a page."""
    parser.error = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    return parser.parse_args(words)


def _refuse(message: str) -> None:
    raise InputError(f"{message}; see --help")


if __name__ == "__main__":
    sys.exit(main())
