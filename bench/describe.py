"""The page `docs/algorithms.md`, written from the code: `python -m bench.describe docs/algorithms.md`."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from bench.config import Cell, Shared, make_cell, resolve
from bench.contract import Named
from bench.cost import Nfe
from bench.parse import field_types, key_value, parse_arms, replaced, split_top
from bench.presets import PRESETS
from bench.preview import planned
from bench.registry import InputError, Registry, load

PAPER = replace(Shared(), **PRESETS["paper"].shared)
RULES = ("plan", "credit", "select", "updates", "loss", "decay", "remember")
EXAMPLES = {
    "guard": ["guard(host=branch)"],
    "branch-official": [
        "branch-official(width=mode1)",
        "branch-official(width=mode2)",
        "branch-official(depths=[15,16,17,18])",
        "branch-official(mix=true)",
    ],
}
"""Arm -> others worth showing beside it."""
COMMON = {
    "ddof": "Of the std that normalises: 0 divides by n, 1 by n-1.",
    "eps": "Added to the std that normalises.",
    "fusion": "Whether eq. (3) weighs leaves by their paths, or all alike.",
    "tail_ratio": "Fraction of the steps after the last stochastic one that `tail` keeps.",
}
"""Settings that stand without a docstring in their algorithms."""
INTRO = f"""\
# The algorithms

What each algorithm does, how it is set, where it departs from its paper, and what it costs. This page is generated from
the code: edit the docstrings, not the page, and run `python -m bench.describe docs/algorithms.md`.

Costs are model calls an image under preset `paper`: T = {PAPER.steps} steps, G = {PAPER.group_size} images a prompt,
{PAPER.updates_per_iteration} updates an iteration; means over its {PAPER.iterations} iterations, so that a window that
moves counts with every place it reaches. *Other policies* are forwards without gradients; where one equals the live
one, as the reference does at first and an `old` of every new iteration on the first of its updates, the live velocity
serves. [measures.md](measures.md) defines the columns."""
READING = """\
In the equations r is a reward, A an advantage, p a density as the mean over the latent's D dimensions, rho the ratio of
p to the old policy's, c the clip range, v the velocity. Defaults are the algorithm's; the `kernel`, `eta` and `clip` of
a preset win over them, but for a `clip` that the algorithm owns. It *owns* shared keys that its arms may set, and
*claims* what its tests hold it to: `group_size` images a prompt, advantages that sum to zero, a first update that is
the policy gradient. Sections stand in the order of the papers."""
OFFICIAL = """\
## Where our costs differ from the papers', and why

*Official* is what the papers or their official code run for an image, training counted in trained steps; *once*, what
would be left of it if forwards that images share ran once, in the rollout and, for children of one parent, in training;
*ours*, what is planned under the same shared keys. Keys that are not named are those of preset `paper`."""
OFFICIALS = """\
dance | steps=20,group_size=12 | 20 | 19.08 | 19 | 18.08
the same; the paper counts 20 trained steps, its code and ours leave the last one out
dance(tf=0.6) | steps=20,group_size=12 | 20 | 19.08 | 11 | ≈ 10.5
the same; the paper counts 12 trained steps of 20, its code and ours take int(19 * 0.6)
flow | steps=10,group_size=24 | 10 | 10 | 9 | 9
the same; the official code doubles both where it uses classifier-free guidance, and asks the reference for its KL too
flow-fast(start=2) | steps=10,group_size=9 | 8.22 | 7.33 | 2 | 1.11
the path splits at k = 2: the code runs k/9 + 10 - k; here the forward of the split is shared too
mix | steps=25,group_size=12 | 25 | 19.04 | 4 | 3.08
windows 0 to 11; the code runs every image alone, ours the path down to the first window step once a group
mix-flash(tau=25) | steps=25,group_size=12 | 14.67 | 8.71 | 4 | 3.08
windows 0 to 11; of n steps after the window ours keeps ceil(0.4 * n), as the paper, its code one or two fewer
mix-flash | steps=25,group_size=12 | – | – | 4 | 3.08
the same with the published tau of 20, which reaches windows 0 to 14 in 300 iterations
mix-flash-star | steps=25,group_size=12 | 7 | 6.08 | 4 | 3.08
the published 8 counts the points of the grid; ours takes ceil(0.2 * 21) = 5 steps after the window, 9 in all
tempflow(points=1) | steps=10,group_size=6,train_steps=[4] | 6.67 | 5.83 | 1 | 0.17
6 branches at k = 4: the paper shares the k steps before; here the forward that branches is shared too
branch | | 12.69 | 12.69 | 13.63 | 12.69
the last step is never trained; the published 13.68 counts nodes, root and leaves included
branch-widpru | | 12.69 | 12.69 | 8.63 | 7.7 to 8.2
58 edges down to the last split and 9 steps of 8 of 16 chains, 130 in all; officially 138, with the last step
branch-deppru | | 12.69 | 12.69 | 8.63 | 7.7 to 8.2
138 edges, of 123 parents: the window of 4 depths and the last step are left out
branch-mix(slide=300) | | 12.69 | 12.69 | 2.125 | 1.19
the same, with the window at the start as in the official script; the published 4.25 fits no single tree
branch-mix | | 12.69 | 12.69 | 2.125 | 1.19
our window moves on every 30 iterations, as the paper says, and reaches wider levels
branch-official | | 12.69 | 12.69 | 13.63 | 13.63
the last step is never trained; siblings are mostly trained in different ones of the 36 updates, and share no forward
branch-official(width=mode1) | | 12.69 | 12.69 | 8.63 | 8.63
the same 138 edges: the first five steps of every chain
branch-official(mix=true) | | 12.69 | 12.69 | 2.125 | 2.125
the same 34 edges, with a window that never moves
nft | steps=10,group_size=24,updates_per_iteration=1 | 10 | 10 | 9, of 3 forwards | –
the same three forwards; those of other policies are counted apart
awm | steps=14,group_size=24,updates_per_iteration=1 | 14 | 14 | 6, of 3 forwards | –
the same three forwards; with one update an iteration `old` is the live policy
vgrpo | steps=16,group_size=24,updates_per_iteration=1 | 16 | 16 | 4 | –
the same; with one update an iteration `old` is the live policy"""
"""Arm | shared keys | rollout, official | once | update, official | once; on the next line why ours is what it is."""


def in_tree() -> Registry:
    """Return the algorithms of this repository, in the order of their papers. InputError says which does not load."""
    found = load("algorithms")
    broken = [f"{where}: {why}" for where, why in found.broken.items() if where.startswith("algorithms.")]
    if broken:
        raise InputError(f"the page needs every algorithm: {'; '.join(broken)}")
    names = [name for name, origin in found.origins.items() if origin.startswith("algorithms.")]
    names.sort(key=lambda name: (arxiv(found.values[name]) or "x", found.origins[name]))
    return replace(found, values={name: found.values[name] for name in names})


def arxiv(algorithm: Any) -> str:
    """Return the paper's number, as in arXiv 2505.07818; or nothing."""
    return "".join(re.findall(r"arXiv \d{4}\.\d{4,5}", algorithm.info.paper)[:1])


def cell_of(arm: str, algorithms: Registry, keys: str = "") -> Cell:
    """Return the cell of an arm under preset `paper`, with other shared keys as in steps=10,group_size=24."""
    (spec,) = parse_arms(arm)
    shared = replaced(PAPER, dict(map(key_value, split_top(keys))), "shared")
    return make_cell("describe", spec, 0, shared, resolve(spec, shared, {}, algorithms), ())


@cache
def cost(cell: Cell) -> Nfe:
    """Return what an image costs, a mean over the cell's iterations."""
    return planned(cell).cost


def calls(cost: Nfe) -> list[float]:
    """Return the numbers of a cost, but for other policies': three of the rollout and two of the update."""
    return [number for part in ("rollout", "update") for number in cost.nested()[part].values()]


@cache
def field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings that follow the fields of a class, by name."""
    body = next(node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    return {
        name.target.id: " ".join(ast.literal_eval(doc.value).split())
        for name, doc in pairwise(body)
        if isinstance(name, ast.AnnAssign) and isinstance(name.target, ast.Name) and isinstance(doc, ast.Expr)
    }


def meaning(kind: type, name: str) -> str:
    """Return what a setting means, by its own docstring, the shared key's, or the common one; or nothing."""
    shared, said, _ = field_docs(Shared).get(name, "").partition("; none leaves")
    return field_docs(kind).get(name) or shared + ("." if said else "") or COMMON.get(name, "")


def choices(annotation: Any) -> str:
    """Return the words that a setting may be, as a sentence; nothing if it is of another kind."""
    kinds = (annotation, *get_args(annotation))
    words = [f"`{word}`" for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    rest = ", or a list" if any(get_origin(kind) is tuple for kind in kinds) else ""
    return f" One of {', '.join(words)}{rest}." if words else ""


def written(value: Any) -> str:
    """Return a setting's value as the command line takes it."""
    if isinstance(value, Named):
        return value.name
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(written, value))}]"
    return f"{value:g}".replace("e-0", "e-").replace("inf", ".inf") if isinstance(value, float) else str(value)


def prose(text: str) -> str:
    """Return text in which Markdown sees no markup but code in backticks; arXiv numbers and commits are links."""
    text = re.sub(r"(`[^`]*`)|([*<|])", lambda found: found[1] or "\\" + found[2], text)
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"([\w-]+/[\w.-]+)@([0-9a-f]{7,40})\b", r"[\1@\2](https://github.com/\1/tree/\2)", text)


def paragraph(thing: Any) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def number(value: float, places: int = 2) -> str:
    """Return a number with at most so many decimals."""
    return f"{value:.{places}f}".rstrip("0").rstrip(".")


def others(cost: Nfe) -> list[str]:
    """Return the calls of policies beside the live one, each with its name."""
    return [f"{name} {number(n)}" for name, n in sorted(cost.named_calls.items()) if round(n, 9)]


def listed(names: Iterable[str]) -> str:
    """Return names as code, in order."""
    return ", ".join(f"`{name}`" for name in sorted(names)) or "nothing"


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a column whose name ends in a colon is set to the right."""
    names = head.split(" | ")
    lines = ([n.rstrip(":") for n in names], ["---:" if n.endswith(":") else "---" for n in names], *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arm_row(arm: str, algorithms: Registry, cost: Nfe) -> tuple[str, ...]:
    """Return an arm, the settings in which it differs from its class's defaults, and its cost."""
    name, _, rest = arm.partition("(")
    value = algorithms.get(name)
    changed = [f"{f.name}={written(v)}" for f in fields(value) if (v := getattr(value, f.name)) != f.default]
    differs = ", ".join(f"`{change}`" for change in [*changed, *split_top(rest[:-1])])
    return (f"`{arm}`", differs or "–", *(number(n, 4) for n in calls(cost)), ", ".join(others(cost)) or "–")


def section(kind: Any, arms: Sequence[str], algorithms: Registry, costs: Mapping[str, Nfe]) -> str:
    """Return what there is to say of a class of algorithms."""
    info = kind.info
    name, _, what = paragraph(inspect.getmodule(kind)).partition(": ")
    equations = (inspect.getdoc(kind) or "").partition("\n\n")[2]
    settings = [
        (f"`{f.name}`", f"`{written(f.default)}`", prose(meaning(kind, f.name) + choices(field_types(kind)[f.name])))
        for f in fields(kind)
    ]
    needs = listed({need for arm in arms for need in cell_of(arm, algorithms).algorithm.needs})
    why = f": {paragraph(vars(kind)['needs'])}" if "needs" in vars(kind) else "."
    commands = [f'bench run --algos "{arm}"' if "(" in arm else f"bench run --algos {arm}" for arm in arms]
    head = "arm | differs in | rollout, paper: | edges: | calls: | update, edges: | calls: | other policies"
    parts = (
        f"## {name}\n\n{prose(what[:1].upper() + what[1:])}",
        prose(f"Paper: {info.paper}. Code: {info.reference}. File: `{kind.__module__.replace('.', '/')}.py`."),
        f"```text\n{equations}\n```" if equations else "",
        "\n".join(f"- *{rule}*: {prose(paragraph(vars(kind)[rule]))}" for rule in RULES if rule in vars(kind)),
        table("setting | default | meaning", settings),
        prose(f"Owns {listed(info.owns)}. Claims {listed(info.claims)}. Needs {needs}{why}"),
        "\n".join(["Deviations:\n", *(f"- {prose(line)}" for line in info.deviations)]),
        table(head, [arm_row(arm, algorithms, costs[arm]) for arm in arms]),
        "\n".join(["```sh", *commands, "```"]),
    )
    return "\n\n".join(filter(None, parts))


def official(algorithms: Registry) -> str:
    """Return the table of official costs beside ours."""
    lines, rows = OFFICIALS.splitlines(), []
    for line, why in zip(lines[::2], lines[1::2], strict=True):
        arm, keys, *theirs = (part.strip() for part in line.split("|"))
        ours = cost(cell_of(arm, algorithms, keys))
        trained = " + ".join([number(ours.update_calls), *others(ours)])
        said = (*theirs[:2], number(ours.rollout_calls), *theirs[2:], trained)
        rows.append((f"`{arm}`", keys.replace(",", ", ") or "–", *said, prose(why)))
    return table("arm | keys | rollout, official: | once: | ours: | update, official: | once: | ours: | why", rows)


def page() -> str:
    """Return the page. InputError says which algorithm does not load, or which arm cannot run."""
    algorithms, families = in_tree(), dict[type, list[str]]()
    for name, value in algorithms.values.items():
        families.setdefault(type(value), []).extend([name, *EXAMPLES.get(name, [])])
    costs = {arm: cost(cell_of(arm, algorithms)) for arms in families.values() for arm in arms}
    arms = [(f"`{n}`", prose(arxiv(a)) or "–", costs[n]) for n, a in algorithms.values.items()]
    rows = [(n, at, number(c.rollout_calls), number(c.update_calls), ", ".join(others(c)) or "–") for n, at, c in arms]
    overview = table("arm | paper | rollout calls: | update calls: | other policies' calls", rows)
    sections = [section(kind, arms, algorithms, costs) for kind, arms in families.items()]
    return "\n\n".join([INTRO, overview, READING, *sections, OFFICIAL, official(algorithms)]) + "\n"


def main() -> None:
    """Print the page, or write it to a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.describe", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="written instead of printing")
    file = parser.parse_args().file
    try:
        text = page()
    except InputError as error:
        parser.error(str(error))
    print(text, end="") if file is None else file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
