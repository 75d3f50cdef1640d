"""`bench new-algorithm`, `bench check`, and algorithms that build on others."""

from __future__ import annotations

import json

import pytest

from bench.conformance import CHECKS


def test_a_new_algorithm_is_planned_and_checked_as_it_stands(call):
    written = call(["new-algorithm", "my-grpo"])
    assert written.status == 0
    assert "bench check my_grpo.py" in written.out
    assert call(["list", "--plugin", "my_grpo.py"]).out.count("my-grpo") == 1
    planned = call(["run", "--algos", "my-grpo(size=2)", "--plugin", "my_grpo.py", "--dry-run", "--json"])
    assert json.loads(planned.out)["cells"][0]["nfe"]["update"]["edges"] == 2
    checked = call(["check", "my_grpo.py"])
    assert (checked.status, checked.err) == (0, "")
    assert checked.out.splitlines()[-1] == f"{len(CHECKS)} checks, all hold"


def test_an_arm_can_be_checked_with_its_settings(call):
    checked = call(["check", "guard(host=branch(splits=[0,2]))"])
    assert checked.status == 0
    assert checked.out.startswith("guard(host=branch(splits=[0,2])): steps x group size 6x4")


def test_a_file_that_breaks_the_contract_is_status_1(call, tmp_path):
    assert call(["new-algorithm", "late"]).status == 0
    file = tmp_path / "late.py"
    file.write_text(file.read_text().replace("return group_relative", "return -group_relative"))
    checked = call(["check", "late.py"])
    assert checked.status == 1
    assert "FAILED  a better image has no smaller advantage: leaf 0 earns more" in checked.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check"], "the following arguments are required: target"),
        (["check", "dence"], "unknown algorithm 'dence'; did you mean 'dance'?"),
        (["check", "absent.py"], "absent.py: no such file"),
        (["check", "branch(splits=[0,1,2,3,4])"], "so at every one of 12 horizons and group sizes"),
        (["new-algorithm", "dance"], "'dance' is taken, by algorithms.dance"),
        (["new-algorithm", "Mine"], "small letters, digits and hyphens"),
        (["new-algorithm", "mine", "--out", "nowhere"], "cannot be written: No such file"),
        (["run", "--algos", "guard(host=dence)"], "unknown algorithm 'dence'; did you mean 'dance'?"),
        (["run", "--algos", "guard(host=[dance])"], "an arm is wanted, as in host=dance"),
        (["run", "--algos", "guard(host=branch(s=-1))"], "s and beta are not negative"),
        (["run", "--algos", "guard(host=flow)"], "choose a host without KL"),
        (["run", "--algos", "guard(host=nft)"], "its host has none: choose one with an SDE"),
        (["run", "--algos", "flow(eps=-3)"], "ddof is 0 or 1, and eps a number from 0 on"),
        (["run", "--algos", "mix-flash", "--preset", "paper", "--set", "steps=3"], "no step is left for a tail"),
        (["run", "--algos", "dance", "--set", "eval_prompts=1", "--set", "eval_samples=1"], "drift needs two images"),
        (["run", "--algos", "guard(kernel=cps)"], "'kernel' is shared by all arms (it may set clip)"),
        (["run", "--algos", "mix(tail=dpmm)"], "did you mean 'dpm'?"),
        (["run", "--algos", "branch(tail=dpm)"], "without mix every step but the last is stochastic"),
        (["run", "--algos", "tempflow(points=3)"], "group_size 16 is not points * seeds = 3 * 1 times 2 or more"),
        (["run", "--algos", "tempflow(points=8)", "--set", "train_steps=[0,1]"], "only 2 steps may be trained"),
        (["run", "--algos", "nft(beta=0)"], "beta and adv_max are positive"),
        (["run", "--algos", "nft", "--set", "roots=shared"], "nft cannot have roots=shared"),
        (["run", "--algos", "ddpo(at_least=1)"], "at_least is from 2 to buffer"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(call, words, says):
    answer = call(words)
    assert answer.status == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1


def test_a_host_gets_the_suites_keys_and_settings_under_its_name(call):
    words = ["run", "--algos", "guard(host=branch)", "--preset", "quick", "--set", "branch.s=2", "--dry-run", "--json"]
    assert json.loads(call(words).out)["cells"][0]["nfe"]["update"]["edges"] == 1.875  # quick's splits 0 to 3
    one, other = (json.loads(call([*words[:6], f"branch.s={s}", *words[7:]]).out)["cells"][0]["hash"] for s in (2, 3))
    assert one != other


def test_the_costs_of_other_policies_are_in_the_dry_run(call):
    said = call(["run", "--algos", "nft,dance", "--preset", "quick", "--dry-run"]).out
    assert "other policies" in said
    assert "reference" in said
    assert "other policies" not in call(["run", "--algos", "dance", "--preset", "quick", "--dry-run"]).out


MISTAKES = {
    "no-return": (
        "    def credit(self, plan, outcome, ctx):\n        'x'\n",
        "credit returned None; one number a node",
    ),
    "a-leaf": (
        "    def credit(self, plan, outcome, ctx):\n        'x'\n        return outcome.reward\n",
        "credit returned an array of shape (16,); one number a node",
    ),
    "no-plan": ("    def plan(self, ctx):\n        'x'\n", "plan returned None; a Plan is wanted"),
    "no-selection": (
        "    def select(self, plan, outcome, advantage, ctx):\n        'x'\n",
        "select returned None; a Selection is wanted",
    ),
    "needs-no-property": ("    def needs(self):\n        return frozenset()\n", "needs is a property"),
    "decay-of-a-stranger": ("    def decay(self, ctx):\n        return {'oId': 0.5}\n", "decay returned {'oId': 0.5}"),
    "exit": (
        "    def credit(self, plan, outcome, ctx):\n        'x'\n        raise SystemExit(4)\n",
        "SystemExit: 4 (",
    ),
    "key": (
        "    def credit(self, plan, outcome, ctx):\n        'x'\n        return {}['spread']\n",
        "KeyError: 'spread' (",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_typical_mistake_is_told_in_one_line(call, tmp_path, name, verb):
    body, says = MISTAKES[name]
    head = "from dataclasses import dataclass\nfrom algorithms.dance import Dance\n"
    made = "@dataclass(frozen=True, slots=True, kw_only=True)\nclass Mine(Dance):\n    'Mine.'\n"
    (tmp_path / "mine.py").write_text(f"{head}{made}{body}\nARMS = {{'mine': Mine()}}\n")
    words = ["check", "mine.py"] if verb == "check" else ["run", "--algos", "mine", "--plugin", "mine.py", "--dry-run"]
    answer = call(words)
    assert answer.status == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1


def test_an_algorithm_without_a_choice_is_told_which(call, tmp_path):
    call(["new-algorithm", "halved"])
    file = tmp_path / "halved.py"
    text = file.read_text()
    file.write_text(text[: text.index("    def loss(")] + "\nARMS = {'halved': Halved()}\n")
    answer = call(["check", "halved.py"])
    assert (answer.status, answer.err) == (
        2,
        "bench: halved has no method loss: an algorithm is plan, credit, select, loss\n",
    )


def test_hosts_of_one_class_name_in_two_files_are_two(call, tmp_path):
    for name, sign in (("one", ""), ("two", "-")):
        call(["new-algorithm", name])
        file = tmp_path / f"{name}.py"
        text = file.read_text().replace("return group_relative", f"return {sign}group_relative")
        file.write_text(
            text.replace("class One(", "class Rank(")
            .replace("class Two(", "class Rank(")
            .replace("One()", "Rank()")
            .replace("Two()", "Rank()")
        )
    plugins = ["--plugin", "one.py", "--plugin", "two.py"]
    assert call(["list", *plugins]).status == 0
    good, bad = (call(["check", f"guard(host={name})", *plugins]) for name in ("one", "two"))
    assert (good.status, bad.status) == (0, 1)
