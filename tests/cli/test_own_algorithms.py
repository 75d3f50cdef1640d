"""`bench new-algorithm`, `bench check`, and algorithms that build on others."""

from __future__ import annotations

import json

import pytest


def test_a_new_algorithm_is_planned_and_checked_as_it_stands(call):
    written = call(["new-algorithm", "my-grpo"])
    assert written.status == 0
    assert "bench check my_grpo.py" in written.out
    assert call(["list", "--plugin", "my_grpo.py"]).out.count("my-grpo") == 1
    planned = call(["run", "--algos", "my-grpo(size=2)", "--plugin", "my_grpo.py", "--dry-run", "--json"])
    assert json.loads(planned.out)["cells"][0]["nfe"]["update"]["edges"] == 2
    checked = call(["check", "my_grpo.py"])
    assert (checked.status, checked.err) == (0, "")
    assert checked.out.splitlines()[-1] == "18 checks, all hold"


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
        (["check", "branch(splits=[0,1,2,3,4])"], "has a plan for none of"),
        (["new-algorithm", "dance"], "'dance' is taken, by algorithms.dance"),
        (["new-algorithm", "Mine"], "small letters, digits and hyphens"),
        (["new-algorithm", "mine", "--out", "nowhere"], "cannot be written: No such file"),
        (["run", "--algos", "guard(host=dence)"], "unknown algorithm 'dence'; did you mean 'dance'?"),
        (["run", "--algos", "guard(host=[dance])"], "an arm is wanted, as in host=dance"),
        (["run", "--algos", "guard(host=branch(s=-1))"], "s and beta are not negative"),
        (["run", "--algos", "guard(host=flow)"], "choose a host without KL"),
        (["run", "--algos", "guard(host=nft)"], "choose a host without KL"),
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
