"""The verb `score`: scorers on images and videos that exist, without a run."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.arguments import check_media_alike, parsed
from bench.parse import split_top
from bench.registry import InputError, load
from bench.scorers.captions import captioned, left_out
from bench.scorers.lookup import Scorers, check_here, loaded, named

EPILOG = """\
examples:
  bench score --rewards hpsv2.1,pickscore images/            # NAME.txt beside each, or metadata.jsonl
  bench score --rewards clip images.jsonl --out clip         # clip.csv and clip.json
  bench score --rewards hpsv2.1 runs/SUITE/CELL/samples/000030
"""


def score_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench score`."""
    parser = argparse.ArgumentParser(
        prog="bench score",
        description="Score images or videos with their prompts. Exit status 1 where a file has no score.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="FOLDER|FILE", help="images or videos with prompts; a .jsonl or .csv of them")
    add("--rewards", required=True, metavar="A,B", help="scorers, as in a run, without weights")
    add("--out", metavar="NAME", help="write NAME.csv and NAME.json (default: scores)", default="scores")
    add("--batch", type=int, default=32, metavar="N", help="most files in memory at a time (default: 32)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--plugin", type=Path, action="append", default=[], metavar="FILE", help="a file with REWARDS")
    return parser


def score(words: Sequence[str]) -> int:
    """Score files, write a CSV and a JSON file, print a summary; return 1 if a file has no score, 130 after Ctrl-C."""
    args = parsed(score_parser(), words)
    try:
        return _score(args)
    except KeyboardInterrupt:
        print("bench: interrupted; no score is written", file=sys.stderr)
        return 130


def _score(args: argparse.Namespace) -> int:
    if args.batch < 1:
        raise InputError(f"--batch {args.batch}: at least one is needed")
    registry = load("rewards", args.plugin)
    scorers = of_words(args.rewards, registry)
    media = check_media_alike(scorers.found)
    out = outputs(args.out)
    files = captioned(args.source)
    say_left_out(args.source, left_out(args.source, files))
    check_here(scorers.found)
    from transformers.utils import logging

    from bench.scorers.files import INTERRUPTED, check_rates, check_whole, document, measured, score_files, table
    from bench.serving.serve import found

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = found(args.device)
    sizes = measured(files, media)
    check_whole(scorers.found, files, sizes)
    if media == "video":
        check_rates(scorers.found, files)
    rewards = {name: loaded(name, scorer) for name, scorer in scorers.found.items()}
    progress = Progress(len(files))
    scored = score_files(rewards, files, sizes, args.batch, device, progress)
    progress.end()
    told = document(scored, rewards)
    write(out, (table(scored), json.dumps(told, indent=1, allow_nan=False) + "\n"))
    print("\n".join(spoken(told)))
    print(f"{out[0]}, {out[1]}")
    for failure in told["failures"]:
        print(f"bench: {failure}", file=sys.stderr)
    failed = any(one["failed"] for one in told["summary"].values())
    return 130 if INTERRUPTED in scored.failures else int(failed)


def of_words(text: str, registry: Any) -> Scorers:
    """Return the scorers of --rewards, which have no weights here."""
    scorers, labels = named(split_top(text), registry)
    if not labels:
        raise InputError("no scorer is named; --rewards hpsv2.1,pickscore names two")
    weighted = [label for label in labels if label not in scorers.found]
    if weighted:
        raise InputError(f"{weighted[0]!r}: a weight is of training; here each scorer has a column of its own")
    return scorers


def outputs(name: str) -> list[Path]:
    """Return the files that --out names, which can be written and are not there.

    Raises:
        InputError: if one cannot, or is.
    """
    base = re.sub(r"\.(csv|json)$", "", name)
    out = [Path(f"{base}{suffix}") for suffix in (".csv", ".json")]
    try:
        if not base or base.endswith("/") or Path(base).is_dir():
            raise InputError(f"--out {name} is a folder: name files in it, as in --out {Path(base) / 'scores'}")
        if not out[0].parent.is_dir():
            raise InputError(f"--out: there is no folder {out[0].parent}")
        for path in out:
            with path.open("x"):
                pass
            path.unlink()
    except FileExistsError as error:
        raise InputError(f"{error.filename} is there already: remove it, or choose another --out") from error
    except OSError as error:
        raise InputError(f"--out: {out[0]} cannot be written: {error.strerror}") from error
    return out


def write(out: Sequence[Path], texts: Sequence[str]) -> None:
    """Write what was scored.

    Raises:
        InputError: if it cannot be written.
    """
    for path, text in zip(out, texts, strict=True):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error


def say_left_out(source: Path, names: Sequence[str]) -> None:
    """Say how many files and folders of a folder are not scored."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"bench: {source}: {names[0]}{more} are left out: in no list, or no image or video", file=sys.stderr)


def spoken(told: Mapping[str, Any]) -> list[str]:
    """Return mean, spread and unit of each scorer, a line each; of one that has a model, a line that says which."""
    wide = max(len(name) for name in told["summary"])
    lines = []
    for name, one in told["summary"].items():
        info = told["scorers"][name]
        mean = "no score" if one["mean"] is None else f"{one['mean']:.4f}"
        spread = "" if one["std"] is None else f" (std {one['std']:.4f})"
        better = "higher" if info["higher_is_better"] else "lower"
        count = f"{one['scored']} scored" + (f", {one['failed']} failed" if one["failed"] else "")
        unit = f"{info['unit']}, {reach(info['low'], info['high'])}, {better} is better, revision {info['revision']}"
        lines.append(f"{name:{wide}}  {mean}{spread}  {count}  [{unit}]")
        if how := "; ".join(filter(None, (info["model"], info["preprocessing"]))):
            lines.append(f"{'':{wide}}  {how}")
    return lines


def reach(low: float | None, high: float | None) -> str:
    """Return a range, of which an end may be missing."""
    if low is None and high is None:
        return "unbounded"
    return " to ".join("-" if end is None else f"{end:g}" for end in (low, high))


class Progress:
    """Says on standard error how many files have been scored, on one line of a terminal."""

    def __init__(self, files: int) -> None:
        self.files, self.count = files, 0

    def __call__(self, more: int) -> None:
        """Count more files."""
        self.count += more
        if sys.stderr.isatty():
            print(f"\r{self.count} of {self.files} scored", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
