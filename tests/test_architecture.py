"""The rules of the house, as data, read off the code: who may import whom, where randomness is, how long things are."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "algorithms", "rewards", "eval", "reports", "examples")
HEAVY = ("torch", "diffusers", "transformers", "accelerate")

# The rings of bench, innermost first. A module imports its own ring and those before it.
PURE = [
    "batch",
    "contract",
    "cost",
    "credit",
    "environment",
    "kernel",
    "loss",
    "named",
    "noise",
    "plan",
    "policy",
    "prune",
    "record",
    "schedule",
    "select",
    "solver",
    "tree",
    "writing",
]
STAGES = [
    "serving.client",
    "encoded",
    "lora",
    "patience",
    "scorers.checkpoint",
    "scorers.pixels",
    "processes",
    "serving.protocol",
    "rollout",
    "score",
    "serving.scoring",
    "serving.sent",
    "serving.server",
    "update",
    "scorers.video_files",
    "scorers.videoreward",
    "models.flux",
    "models.parts",
    "models.sd3",
]
SETUP = [
    "budget",
    "scorers.captions",
    "scorers.frames",
    "config",
    "data",
    "datasets",
    "describe",
    "hosts",
    "lock",
    "memory",
    "parse",
    "prepare",
    "presets",
    "prompts",
    "preview",
    "scorers.openai_chat",
    "registry",
    "scorers.rubrics",
    "scaffold",
    "scorers.lookup",
    "template",
    "scorers.transformers_clip",
    "scorers.web",
    "scorers.vision_chat",
    "scorers.weights",
    "models.catalog",
    "models.hub",
    "models.layout",
    "models.sizes",
    "models.source",
    "models.tiny",
    "models.wan",
    "models.wan_frames",
    "scorers.tiny",
    "scorers.tiny.clips",
    "scorers.tiny.imagereward",
    "scorers.tiny.unifiedreward",
    "scorers.tiny.videoalign",
]
CELL = ["accelerated", "checkpoint", "judge", "loop"]
GRID = ["display", "diversity", "scorers.files", "serving.serve", "suite", "worker"]
CHECK = [
    "conformance",
    "conformance.cases",
    "conformance.checks",
    "conformance.choices",
    "conformance.run",
    "conformance.statements",
    "conformance.toy",
    "conformance.training",
]
THEORY = [
    "theory",
    "theory.baseline",
    "theory.claim",
    "theory.fusion",
    "theory.gaussian",
    "theory.marginals",
    "theory.table",
]
COMMAND = ["arguments", "run", "scorers.command"]
RINGS = [[f"bench.{name}" for name in ring] for ring in (PURE, STAGES, SETUP, CELL, GRID, CHECK, THEORY, COMMAND)]

ARITHMETIC = [
    "bench.contract",
    "bench.credit",
    "bench.loss",
    "bench.noise",
    "bench.plan",
    "bench.prune",
    "bench.schedule",
    "bench.select",
    "bench.tree",
]


@dataclass(frozen=True)
class Rule:
    """Modules that match `who` import, of ours, only what matches `may`, and of others nothing that matches `never`."""

    who: str
    may: tuple[str, ...]
    never: tuple[str, ...] = ()
    typing: tuple[str, ...] = ()
    """What they may import besides, for annotations alone."""


RULES = (
    Rule(who="algorithms.*", may=(*ARITHMETIC,), never=("*",)),
    Rule(who="examples.*", may=(*ARITHMETIC,), never=("*",)),
    Rule(
        who="rewards.parity",
        may=(
            "bench",
            "bench.contract",
            "bench.noise",
            "bench.scorers.tiny*",
            "bench.serving",
            "bench.serving.client",
            "rewards.hpsv2",
            "rewards.imagereward",
            "rewards.packages",
        ),
    ),
    Rule(who="rewards.packages.worker", may=(), never=("numpy", *HEAVY)),
    Rule(who="rewards.packages*", may=("rewards.packages",), never=HEAVY),
    Rule(
        who="rewards.*",
        may=(
            "bench.contract",
            "bench.scorers.*",
            *(f"bench.serving.{part}" for part in ("client", "protocol", "sent")),
            *(f"bench.embedded{part}" for part in ("", ".colour", ".moving", ".world")),
        ),
    ),
    Rule(
        who="reports.*",
        may=("bench.record", "eval.statistics", "reports", "reports.*"),
        never=(*HEAVY, "scipy.stats"),
    ),
    Rule(who="eval.*", may=("eval.*", *RINGS[0], *RINGS[1])),
    Rule(who="bench.embedded.splits", may=(), never=HEAVY),
    Rule(who="bench.embedded.world", may=("bench.embedded.splits",), never=HEAVY),
    Rule(
        who="bench.embedded.moving",
        may=("bench.embedded", "bench.embedded.splits", "bench.embedded.world"),
        never=HEAVY,
    ),
    Rule(who="bench.embedded.colour", may=("bench.embedded", "bench.embedded.world"), never=HEAVY),
    Rule(who="bench.embedded.*", may=("bench.embedded", "bench.embedded.*", "rewards.*", "bench.contract")),
    Rule(who="bench.*", may=("bench", "bench.*", "eval.diversity", "eval.heldout", "reports.build")),
)
"""The first rule that fits a module holds for it."""
COMPARING = ("rewards.parity", "rewards.packages*")
"""Commands beside the rewards, which are none."""
ALGORITHMS_MAY_USE = ("numpy", "jaxtyping")
LATE = {"bench.run": "reports.build", "bench.cost": "torch"}
"""What a module imports inside a function alone, because names, plans and help must not wait for it."""
WITHOUT_TORCH = [
    "arguments",
    "budget",
    "serving.client",
    "config",
    "contract",
    "cost",
    "credit",
    "data",
    "datasets",
    "describe",
    "display",
    "environment",
    "hosts",
    "lock",
    "memory",
    "noise",
    "scorers.openai_chat",
    "parse",
    "plan",
    "prepare",
    "presets",
    "prompts",
    "preview",
    "serving.protocol",
    "prune",
    "record",
    "registry",
    "scorers.rubrics",
    "run",
    "scaffold",
    "schedule",
    "scorers.lookup",
    "select",
    "serving.sent",
    "serving.serve",
    "suite",
    "tree",
    "scorers.web",
    "scorers.vision_chat",
    "scorers.weights",
    "models.catalog",
    "models.hub",
    "models.layout",
    "models.sizes",
    "models.source",
    "models.tiny",
]

LONGEST: dict[str, int] = {
    **dict.fromkeys(("algorithms", "examples"), 140),
    **dict.fromkeys(("bench", "rewards", "eval", "reports", "benchmarks"), 420),
}
LONGEST_FUNCTION = 60
RANDOM = ("random", "numpy.random", "secrets", "torch.Generator", "torch.default_generator")
RANDOM_CALLS = [
    "randn",
    "rand",
    "randint",
    "randperm",
    "randn_like",
    "rand_like",
    "randint_like",
    "manual_seed",
    "seed",
    "default_rng",
]
RANDOM_ALLOWED = ("bench.noise", "bench.embedded.*", "eval.statistics")
"""Where random numbers are drawn: runs' in one place, the embedded model's, and the reader's bootstrap."""


@dataclass(frozen=True)
class Import:
    module: str
    typing: bool
    """Under TYPE_CHECKING."""
    late: bool
    """Inside a function."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> tuple[Import, ...]:
    return tuple(_imports(parsed(name), typing=False, late=False))


def _imports(node: ast.AST, *, typing: bool, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, typing, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(full if full in MODULES else child.module or "", typing, late)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), typing=True, late=late)
        else:
            inside = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _imports(child, typing=typing, late=inside)


def fits(module: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns)


def ours(module: str) -> bool:
    return module.split(".")[0] in PACKAGES


def top(module: str) -> str:
    return module.split(".")[0]


def ring(module: str) -> int | None:
    return next((at for at, names in enumerate(RINGS) if module in names), None)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_its_rule_allows(name):
    rule = next((rule for rule in RULES if fits(name, (rule.who,))), None)
    if rule is None:
        assert "." not in name, f"{name} has no rule"
        return
    wrong = [
        found.module
        for found in imports(name)
        if ours(found.module)
        and not fits(found.module, rule.may)
        and not (found.typing and fits(found.module, rule.typing))
    ]
    assert wrong == []
    libraries = {found.module for found in imports(name) if not ours(found.module) and not found.typing}
    if rule.never == ("*",):
        assert {top(m) for m in libraries} <= {*ALGORITHMS_MAY_USE, *sys.stdlib_module_names}
    else:
        assert [m for m in libraries if fits(m, rule.never) or fits(top(m), rule.never)] == []


@pytest.mark.parametrize("name", [name for ring in RINGS for name in ring])
def test_a_ring_imports_no_outer_ring(name):
    own = ring(name)
    assert own is not None
    outer = [i.module for i in imports(name) if not i.typing and (ring(i.module) or 0) > own]
    assert outer == []


def test_every_module_of_the_harness_is_in_a_ring():
    harness = {name for name in MODULES if name.startswith("bench.") and not name.startswith("bench.embedded")}
    assert harness - {"bench.models", "bench.scorers", "bench.serving"} == {name for ring in RINGS for name in ring}


def test_nobody_imports_the_command_line():
    assert [name for name in MODULES if "bench.run" in {i.module for i in imports(name)}] == []


def test_no_algorithm_imports_another_and_no_reward_another():
    for package in ("algorithms", "rewards"):
        for name in MODULES:
            if name.startswith(f"{package}.") and not fits(name, COMPARING):
                assert [i.module for i in imports(name) if top(i.module) == package] == []


def test_the_builtin_eval_is_never_hidden():
    assert [name for name in MODULES if "eval" in {i.module for i in imports(name)}] == []


@pytest.mark.parametrize("name", [f"bench.{name}" for name in WITHOUT_TORCH])
def test_names_and_plans_do_not_wait_for_torch(name):
    """Neither a module nor anything of ours that it imports at once imports a heavy library at once."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        seen.add(module)
        at_once = [i.module for i in imports(module) if not i.typing and not i.late]
        assert [m for m in at_once if top(m) in HEAVY] == [], module
        todo += [m for m in at_once if m in MODULES and m not in seen]


@pytest.mark.parametrize(("name", "module"), LATE.items())
def test_what_is_slow_is_imported_late(name, module):
    found = [i for i in imports(name) if fits(i.module, (module, f"{module}.*"))]
    assert found
    assert all(i.late or i.typing for i in found)


@pytest.mark.parametrize("name", MODULES)
def test_random_numbers_come_from_one_place(name):
    if fits(name, RANDOM_ALLOWED):
        return
    assert [i.module for i in imports(name) if fits(i.module, RANDOM)] == []
    called = [node.func for node in ast.walk(parsed(name)) if isinstance(node, ast.Call)]
    drawn = [ast.unparse(f) for f in called if isinstance(f, ast.Attribute) and f.attr in RANDOM_CALLS]
    assert [text for text in drawn if text.split(".")[0] in ("np", "numpy", "torch", "random", "nn")] == []


FILES = {
    **MODULES,
    **{name_of(path): path for path in sorted((ROOT / "benchmarks").rglob("*.py"))},
}


@pytest.mark.parametrize("name", FILES)
def test_a_module_is_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST[top(name)]


@pytest.mark.parametrize("name", FILES)
def test_a_function_is_short(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno is not None}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}
