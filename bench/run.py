"""The command line: `python -m bench.run --algos dance,mix,branch`. A verb is a function here.

Exit status: 0 done, 1 a cell failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import memory, prepare, scaffold
from bench import suite as grid
from bench.arguments import (
    check_means,
    diversity_parser,
    make_suite,
    parsed,
    prepare_parser,
    run_parser,
    serve_parser,
    trackers,
)
from bench.config import Shared
from bench.contract import PAUSED, POLICIES
from bench.environment import gpu_bytes, torchrun
from bench.hosts import class_of, of_class, settings
from bench.lock import locked
from bench.models import tiny
from bench.models.hub import MissingError
from bench.models.sizes import sizes_of
from bench.models.source import described, entry_of, resolve_model
from bench.parse import replaced, split_top
from bench.presets import PRESETS
from bench.preview import dry_run, spoken
from bench.registry import InputError, load, nearest
from bench.scorers import command as score_command
from bench.scorers import lookup
from bench.scorers import tiny as tiny_scorers
from bench.serving import serve
from bench.suite import Suite, check_closed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbs = {
        "run": run,
        "list": list_plugins,
        "prepare": fetch,
        "score": score_command.score,
        "report": report,
        "serve": serve_scorer,
        "check": check,
        "new-algorithm": new_algorithm,
        "theory": theory,
        "diversity": diversity,
        "make-tiny": make_tiny,
    }
    verb = words.pop(0) if words and words[0] in verbs else "run"
    try:
        if verb != "run" and torchrun()[1] > 1:
            raise InputError(f"bench {verb} takes one process: start it without torchrun")
        return verbs[verb](words)
    except InputError as error:
        if torchrun()[0] == 0:
            print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if verb in ("run", "prepare", "diversity") else ""
        print(f"bench: interrupted{goes_on}", file=sys.stderr)
        return 130


def run(words: Sequence[str]) -> int:
    """Run a suite's missing cells, then report."""
    from rich.console import Console

    from bench import display

    args = parsed(run_parser(), words)
    if args.json and not args.dry_run:
        raise InputError("--json goes with --dry-run")
    suite = make_suite(args)
    check_means(args, suite)
    preview = dry_run(suite.cells, args.out if args.dry_run else None)
    check_closed(suite.folder, suite.shared, open_suite=args.open)
    scorers = scorers_of(suite, args.plugin)
    estimated = estimate_of(suite, args, scorers)
    if args.dry_run:
        preview |= {"memory": dict(estimated.phases)} if estimated else {}
        missing = f"suite {suite.folder}, preset {suite.preset}: {len(suite.missing())} cells to run"
        print(json.dumps(preview, indent=1) if args.json else f"{missing}\n{spoken(preview)}")
        if estimated and not args.json:
            print(f"\nmemory: {memory.spoken(estimated)}")
        return 0
    check_here(suite, args.plugin, scorers)
    warn_of_memory(suite, args, estimated)
    if torchrun()[1] > 1:
        return together(suite, args, preview["alike"])
    create(suite, open_suite=args.open)
    missing = suite.missing()
    if missing:
        host = grid.machine(args.jobs, args.device)
        print(f"{suite.folder}: {len(missing)} of {len(suite.cells)} cells to run, {host.jobs} at a time", flush=True)
        say_alike(preview["alike"])
        workers = grid.start(suite, host, args.device, trackers(args))
        display.watching(suite, Console(), lambda watch: grid.finish(workers, watch))
    return concluded(suite)


def estimate_of(suite: Suite, args: argparse.Namespace, scorers: Mapping[str, Any]) -> memory.Memory | None:
    """Return how much memory a process will take; None for embedded models, which fit anywhere, and unknown sizes."""
    shared = suite.shared
    entry, source = entry_of(shared.model, args.plugin), described(shared.model, args.plugin)
    if entry is not None and Path(entry.source).is_dir():
        return None
    sizes = sizes_of(source.folder)
    if sizes is None:
        return None
    copies = max(len(cell.algorithm.needs & POLICIES) for cell in suite.cells)
    processes, parallel = torchrun()[1], args.parallel or "ddp"
    held = lookup.memory(scorers)
    return memory.estimate(
        sizes, source.family, shared, policies=copies, processes=processes, parallel=parallel, scorers=held
    )


def scorers_of(suite: Suite, plugins: Sequence[Path]) -> dict[str, Any]:
    """Return the scorers of a suite, looked at, by what records call them."""
    shared, registry, written = suite.shared, load("rewards", plugins), suite.cells[0].scorers
    names = dict.fromkeys([*shared.eval_rewards, *filter(None, [shared.features])])
    return {name: lookup.looked_at(written.get(name, name), registry) for name in names}


def warn_of_memory(suite: Suite, args: argparse.Namespace, estimated: memory.Memory | None) -> None:
    """Say, once, that a run may not fit this machine's GPUs, and what makes it smaller."""
    there = gpu_bytes() if estimated and args.device != "cpu" and torchrun()[0] == 0 else None
    if estimated and there and estimated.peak > there:
        left = memory.remedies(suite.shared, torchrun()[1], args.parallel or "ddp")
        needs = f"about {memory.gigabytes(estimated.peak)} GB a GPU, estimated, and this machine's smallest has"
        print(f"bench: the run takes {needs} {memory.gigabytes(float(there))}; smaller: {left}", file=sys.stderr)


def check_here(suite: Suite, plugins: Sequence[Path], scorers: Mapping[str, Any]) -> None:
    """Raise InputError unless the model and what the scorers read are on this machine."""
    resolve_model(suite.shared.model, plugins, weights=suite.shared.model_weights)
    lookup.check_here(scorers)


def say_alike(alike: Mapping[str, str]) -> None:
    """Name the arms that do what another does."""
    for arm, twin in alike.items():
        print(f"bench: {arm} samples, credits and selects exactly as {twin} does under these settings", file=sys.stderr)


def together(suite: Suite, args: argparse.Namespace, alike: Mapping[str, str]) -> int:
    """Run what is missing in the processes that torchrun started, of which this is one."""
    from transformers.utils import logging

    from bench.processes import join, leave
    from bench.worker import Worker, found_device, stop_without_parent, work

    logging.disable_progress_bar()
    stop_without_parent()
    if torchrun()[0] == 0:
        create(suite, open_suite=args.open)
    device = found_device(args.device)
    processes = join(device)
    names = processes.from_first([cell.folder for cell in suite.missing()] if processes.first else [])
    if processes.first:
        told = f"{len(names)} of {len(suite.cells)} cells to run, one at a time, by {processes.count} processes"
        print(f"{suite.folder}: {told}", flush=True)
        say_alike(alike)
    worker = Worker(
        suite=suite.folder,
        device=device,
        processes=processes,
        parallel=args.parallel or "ddp",
        trackers=trackers(args),
    )
    work(worker, names)
    status = processes.from_first(concluded(suite) if processes.first else 0)
    leave()
    return status


def create(suite: Suite, *, open_suite: bool) -> None:
    """Write the suite's configuration."""
    try:
        second = grid.write(suite, open_suite=open_suite)
    except OSError as error:
        where = error.filename or suite.folder
        raise InputError(f"{where} cannot be written: {error.strerror}; choose another --out") from error
    if second:
        print(f"bench: suite {suite.folder.name} is open: it now holds a second shared configuration", file=sys.stderr)


def concluded(suite: Suite) -> int:
    """Say what a reader should know, print the report's table; return the exit status."""
    for cell, what in grid.remarks(suite).items():
        print(f"bench: {cell}: {what}", file=sys.stderr)
    failed = grid.failures(suite)
    for cell, why in failed.items():
        print(f"bench: {cell} {why if why.startswith(PAUSED) else f'failed: {why}'}", file=sys.stderr)
    if len(failed) < len(suite.cells):
        show_report(suite.folder)
    return 1 if failed else 0


def diversity(words: Sequence[str]) -> int:
    """Roll out the arms on the base model, measure how far apart their images are, then report."""
    args = parsed(diversity_parser(), words)
    if args.rollouts < 1:
        raise InputError(f"--rollouts {args.rollouts}: at least one is needed")
    suite = make_suite(args)
    if not suite.shared.features:
        raise InputError("diversity is a distance in image features, and this suite names none: --set features=SCORER")
    dry_run(suite.cells, None)  # every arm has a plan
    check_closed(suite.folder, suite.shared, open_suite=args.open)
    check_here(suite, args.plugin, scorers_of(suite, args.plugin))
    from bench.diversity import measure

    try:
        grid.write(replace(suite, cells=()), open_suite=args.open)
        measure(
            suite, args.rollouts, args.device, lambda what: print(f"{suite.folder}: rolling out {what}", flush=True)
        )
    except OSError as error:
        raise InputError(f"{suite.folder} cannot be written: {error.strerror}; choose another --out") from error
    except (RuntimeError, ValueError) as error:  # a scorer of features, or a model, that cannot take these images
        print(f"bench: diversity failed: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    show_report(suite.folder)
    return 0


def list_plugins(words: Sequence[str]) -> int:
    """Print algorithms, models, rewards and presets, a line each."""
    parser = argparse.ArgumentParser(prog="bench list", description="What has a name.", allow_abbrev=False)
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE")
    args = parsed(parser, words)
    algorithms, rewards, models = (load(kind, args.plugin) for kind in ("algorithms", "rewards", "models"))
    print("algorithms")
    for name, value in algorithms.values.items():
        mine, base = settings(value), settings(of_class(class_of(value), algorithms))
        how = ", ".join(f"{key}={mine[key]}" for key in mine if mine[key] != base[key])
        print(f"  {name:24} {value.info.paper}{f' [{how}]' if how else ''}")
    print("rewards")
    for name, value in rewards.values.items():
        print(f"  {name:24} {(value.__doc__ or ' ').splitlines()[0]}{lookup.spoken(value)}")
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


def fetch(words: Sequence[str]) -> int:
    """Fetch what a model, rewards and prompts need; return 1 if something is still missing."""
    args = parsed(prepare_parser(), words)
    rewards = split_top(args.rewards or "")
    if args.model is None and args.prompts is None and not rewards:
        raise InputError("bench prepare fetches what is named: --model, --rewards or --prompts")
    missing = False
    for item in prepare.wanted(args.model, rewards, args.prompts, args.plugin):
        try:
            missing |= not prepare.prepare(item, args.plugin, print, dry_run=args.dry_run)
        except MissingError as error:
            print(f"bench: {error}", file=sys.stderr)
            missing = True
    for line in memory_lines(args.model, args.plugin) if args.model else ():
        print(line)
    print("something is missing" if missing else "everything is here")
    return 1 if missing else 0


def memory_lines(model: str, plugins: Sequence[Path]) -> list[str]:
    """Return what training a registered model takes of a GPU's memory, as it is registered and in full."""
    entry = entry_of(model, plugins)
    sizes = None if entry is None or Path(entry.source).is_dir() else sizes_of(described(model, plugins).folder)
    if entry is None or sizes is None:
        return []
    size = {key: getattr(entry, key) for key in ("resolution", "frames", "guidance")}
    adapters = replaced(Shared(), {**PRESETS["lora"].shared, **size, **entry.means}, model)
    everything = replace(adapters, lora_rank=0, lora_alpha=None)
    family, lines = load("families", plugins).get(entry.family), []
    for what, shared in ((f"adapters of rank {adapters.lora_rank}", adapters), ("all weights", everything)):
        one = memory.estimate(sizes, family, shared)
        eight = memory.estimate(sizes, family, shared, processes=8, parallel="fsdp2")
        lines.append(f"memory, training {what}: {memory.spoken(one)}; with fsdp2 on 8: {memory.spoken(eight)}")
    return lines


def serve_scorer(words: Sequence[str]) -> int:
    """Serve a scorer until it is told to end."""
    return serve.serve(parsed(serve_parser(), words), lambda line: print(line, flush=True))


def check(words: Sequence[str]) -> int:
    """Hold an algorithm to the contract; return 1 if it does not keep it."""
    parser = argparse.ArgumentParser(prog="bench check", description="Check an algorithm.", allow_abbrev=False)
    parser.add_argument("target", help="an arm as in --algos, or a file with ARMS")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE")
    args = parsed(parser, words)
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
    args = parsed(parser, words)
    file = scaffold.new_algorithm(args.name, args.out)
    print(f"{file} is an algorithm; it runs as it stands:")
    print(f"  bench check {file}")
    print(f"  bench run --algos dance,{args.name} --plugin {file} --preset smoke")
    return 0


def make_tiny(words: Sequence[str]) -> int:
    """Write a tiny pipeline of random weights, of the classes of a family's real ones."""
    about = "Write a tiny pipeline, or scorer, of random weights in the layout of published ones."
    parser = argparse.ArgumentParser(prog="bench make-tiny", description=about, allow_abbrev=False)
    kinds = [*tiny.KINDS, *tiny_scorers.MAKERS]
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("folder", type=Path, metavar="DIR", help="is made; may be there if it is empty")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights (default: 0)")
    args = parsed(parser, words)
    tiny.make_tiny(args.kind, args.folder, args.seed)
    if args.kind in tiny.KINDS:
        print(f"{args.folder} is a {tiny.KINDS[args.kind][0]} of random weights; --model {args.folder} runs on it")
    else:
        print(f"{args.folder} is a tiny {args.kind} of random weights: --rewards '{args.kind}(weights={args.folder})'")
    return 0


def theory(words: Sequence[str]) -> int:
    """Print what is true of branching rollouts; return 1 if a simulation and its closed form differ."""
    about = "Check what is claimed of branching rollouts, against closed forms for Gaussian data."
    parser = argparse.ArgumentParser(prog="bench theory", description=about, allow_abbrev=False)
    parser.add_argument("--draws", type=int, default=20_000, metavar="N", help="behind a measurement (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--markdown", action="store_true", help="print docs/theory.md")
    args = parsed(parser, words)
    if args.draws < 1000:
        raise InputError(f"--draws {args.draws}: at least 1000 are needed for a standard error")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed {args.seed}: a whole number from 0 on, below 2**63, is wanted")
    from bench.theory import table

    claims = table.all_claims(args.draws, args.seed)
    print(table.markdown(claims) if args.markdown else table.plain(claims))
    return 0 if all(claim.agrees for claim in claims) else 1


def report(words: Sequence[str]) -> int:
    """Rebuild the report of a suite from its records."""
    parser = argparse.ArgumentParser(prog="bench report", description="Rebuild a suite's report.", allow_abbrev=False)
    parser.add_argument("suite", help="a suite's name under --out, or its folder")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR")
    args = parsed(parser, words)
    folder = next((f for f in (args.out / args.suite, Path(args.suite)) if (f / "suite.yaml").is_file()), None)
    if folder is None:
        known = sorted(path.parent.name for path in args.out.glob("*/suite.yaml"))
        raise InputError(f"no suite {args.suite!r} under {args.out}{nearest(args.suite, known) if known else ''}")
    show_report(folder)
    return 0


def show_report(folder: Path) -> None:
    """Write a suite's report under ./reports and print its table."""
    from reports.build import build

    out = Path("reports")
    try:
        out.mkdir(exist_ok=True)
        with locked(out, wait=True):  # another driver may be at its end too
            built = build(folder, out)
    except ValueError as error:
        raise InputError(str(error)) from error
    except (KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"a record under {folder} is damaged ({why}); delete that cell and run again") from error
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; the report goes to ./reports of this folder") from error
    print("\n".join(built.lines))
    print(f"report: {built.page}")


if __name__ == "__main__":
    sys.exit(main())
