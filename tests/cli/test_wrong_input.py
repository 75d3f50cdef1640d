"""Whatever is wrong with the input is said in one line that names the way out, before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.arguments import make_suite, run_parser
from bench.models.catalog import FAMILIES
from bench.models.catalog import MODELS as MODELS_OF_CATALOG
from bench.suite import write

DANCE = ["--algos", "dance"]
FOLDER = ["--rewards", "soft", "--prompts", "world", "--set", "resolution=32", "--iterations", "2"]

# Words of the command line (@ is the folder of wrong files), and what the answer must say.
NAMES = {
    "algorithm": (["--algos", "dence"], ["unknown algorithm 'dence'", "did you mean 'dance'?"]),
    "variant": (["--algos", "branch-widpro"], ["'branch-widpro'", "did you mean 'branch-widpru'?"]),
    "arm-without-name": (["--algos", "(tf=0.5)"], ["unknown algorithm ''", "known: awm, branch"]),
    "arm-setting": (["--algos", "dance(tff=0.5)"], ["has no setting 'tff'", "did you mean 'tf'?"]),
    "arm-setting-elsewhere": ([*DANCE, "--set", "dance.tff=0.5"], ["no setting 'tff'", "did you mean 'tf'?"]),
    "arm-of-setting": ([*DANCE, "--set", "brunch.splits=[0]"], ["'brunch'", "did you mean 'branch'?"]),
    "shared-key": ([*DANCE, "--set", "stepps=20"], ["has no setting 'stepps'", "did you mean 'steps'?"]),
    "preset": ([*DANCE, "--preset", "quik"], ["unknown preset 'quik'", "did you mean 'quick'?"]),
    "model": ([*DANCE, "--model", "tiny-flex"], ["unknown model 'tiny-flex'", "did you mean 'tiny-flux'?"]),
    "reward": ([*DANCE, "--rewards", "sofft"], ["unknown reward 'sofft'", "did you mean 'soft'?"]),
    "eval-reward": ([*DANCE, "--set", "eval_rewards=[strickt]"], ["unknown reward 'strickt'", "mean 'strict'?"]),
    "features": ([*DANCE, "--set", "features=tiny-clop"], ["unknown reward 'tiny-clop'", "mean 'tiny-clip'?"]),
    "flag": ([*DANCE, "--seed", "0"], ["unrecognized arguments: --seed", "see --help"]),
    "no-algos": ([], ["--algos", "see --help"]),
    "tracker": ([*DANCE, "--track", "tensorbord"], ["no such tracker", "did you mean 'tensorboard'?"]),
    "parallel-of-one": ([*DANCE, "--parallel", "fsdp2"], ["several processes", "torchrun --nproc_per_node"]),
    "parallel": ([*DANCE, "--parallel", "fsdp"], ["invalid choice: 'fsdp'", "see --help"]),
    "report-of-nothing": (["report", "absent"], ["no suite 'absent'"]),
    "config-key": ([*DANCE, "--config", "@/unknown.yaml"], ["no setting 'stepz'", "did you mean 'steps'?"]),
    "config-arm-key": (["--algos", "branch", "--config", "@/unknown_inner.yaml"], ["'splitz'", "mean 'splits'?"]),
}

VALUES = {
    "word-for-a-number": ([*DANCE, "--set", "steps=ten"], ["run.steps='ten'", "a whole number is wanted"]),
    "fraction-for-a-count": ([*DANCE, "--set", "steps=2.5"], ["run.steps=2.5", "a whole number is wanted"]),
    "truth-for-a-number": ([*DANCE, "--set", "steps=true"], ["run.steps=True", "a whole number is wanted"]),
    "word-for-a-rate": ([*DANCE, "--set", "lr=fast"], ["run.lr='fast'", "a number is wanted"]),
    "not-a-number": ([*DANCE, "--set", "lr=.nan"], ["lr", "a number is wanted"]),
    "infinite-rate": ([*DANCE, "--set", "lr=.inf"], ["lr=inf", "finite"]),
    "impossible-date": ([*DANCE, "--set", "lr=2020-13-45"], ["lr='2020-13-45'"]),
    "word-for-a-list": ([*DANCE, "--set", "rewards=soft"], ["rewards='soft'", "a list is wanted"]),
    "list-for-a-word": ([*DANCE, "--set", "prompts=[a,b]"], ["prompts=['a', 'b']", "text is wanted"]),
    "mapping-for-a-number": ([*DANCE, "--set", "steps={a: 1}"], ["run.steps", "a whole number is wanted"]),
    "negative-rank": ([*DANCE, "--set", "lora_rank=-1"], ["lora_rank=-1", "0 or more"]),
    "no-scale": ([*DANCE, "--set", "lora_alpha=0"], ["lora_alpha=0", "the scale positive"]),
    "scale-of-nothing": ([*DANCE, "--set", "lora_alpha=8"], ["lora_alpha=8", "nothing without lora_rank"]),
    "no-average": ([*DANCE, "--set", "ema_device=cpu"], ["ema_device=cpu", "nothing without ema"]),
    "guard-on-a-guard": (["--algos", "guard(host=guard)"], ["guard(host=guard): ", "would be the outer one alone"]),
    "average-elsewhere": ([*DANCE, "--set", "ema_device=gpu"], ["ema_device='gpu'", "did you mean 'cpu'?"]),
    "one-beta": ([*DANCE, "--set", "betas=[0.9]"], ["betas=[0.9]", "2 values are wanted"]),
    "beta-of-one": ([*DANCE, "--set", "betas=[0.9,1.0]"], ["betas", "[0, 1)"]),
    "kernel": ([*DANCE, "--set", "kernel=dance"], ["kernel='dance'", "did you mean 'dance_sde'?"]),
    "kernel-of-an-arm": (["--algos", "dance(kernel=flow)"], ["unknown kernel 'flow'", "flow_sde"]),
    "solver": ([*DANCE, "--set", "solver=dpm"], ["solver='dpm'", "did you mean 'dpm2m'?"]),
    "roots": ([*DANCE, "--set", "roots=share"], ["roots='share'", "did you mean 'shared'?"]),
    "precision": ([*DANCE, "--set", "precision=fp16"], ["precision='fp16'", "did you mean 'bf16'?"]),
    "splits-by-name": (["--algos", "branch(splits=dens)"], ["'dens'", "did you mean 'dense'?"]),
    "no-steps": ([*DANCE, "--set", "steps=1"], ["steps", "at least 2"]),
    "group-of-one": ([*DANCE, "--set", "group_size=1"], ["group_size is at least 2"]),
    "no-iterations": ([*DANCE, "--iterations", "0"], ["iterations=0 must be positive"]),
    "iterations-in-words": ([*DANCE, "--iterations", "many"], ["--iterations", "invalid int value"]),
    "no-rate": ([*DANCE, "--set", "lr=0"], ["lr=0", "positive"]),
    "shrinking-weights": ([*DANCE, "--set", "weight_decay=-1"], ["weight_decay", "not negative"]),
    "negative-clip": ([*DANCE, "--set", "clip=-0.1"], ["clip and eta are positive"]),
    "clip-of-an-arm": (["--algos", "dance(clip=0.1)"], ["'clip' is shared", "--set clip="]),
    "roots-an-arm-cannot-have": ([*DANCE[:1], "mix", "--set", "roots=independent"], ["mix cannot have roots"]),
    "ema-of-one": ([*DANCE, "--set", "ema=1"], ["ema is a decay in [0, 1)"]),
    "fraction-above-one": (["--algos", "dance(tf=1.5)"], ["tf=1.5", "(0, 1]"]),
    "negative-branch-noise": (["--algos", "branch(s=-1)"], ["s and beta are not negative"]),
    "no-window": (["--algos", "mix(window=0)"], ["window, stride and tau are at least 1"]),
    "splits-out-of-order": (["--algos", "branch(splits=[3,0])"], ["splits=(3, 0)", "rising"]),
    "budget": ([*DANCE, "--set", "budget=call"], ["budget='call'", "did you mean 'calls'?"]),
    "budget-without-limit": ([*DANCE, "--set", "budget=calls"], ["budget=calls needs a budget_limit"]),
    "limit-of-iterations": ([*DANCE, "--set", "budget_limit=3"], ["budget=iterations takes no budget_limit"]),
    "seed-twice": ([*DANCE, "--seeds", "0,0"], ["--seeds '0,0'", "as in 0,1,2"]),
    "seed-below-zero": ([*DANCE, "--seeds", "-1"], ["--seeds '-1'", "from 0 on"]),
    "seed-in-words": ([*DANCE, "--seeds", "one"], ["--seeds 'one'", "as in 0,1,2"]),
    "seeds-without-end": ([*DANCE, "--seeds", "0,"], ["--seeds '0,'", "as in 0,1,2"]),
    "seed-of-65-bits": ([*DANCE, "--seeds", str(2**64)], [f"--seeds '{2**64}'", "2**63"]),
    "weight-in-words": ([*DANCE, "--rewards", "soft:much"], ["'soft:much'", "as in soft:0.5"]),
    "no-weight": ([*DANCE, "--rewards", "soft:0,graded"], ["'soft:0'", "as in soft:0.5"]),
    "negative-weight": ([*DANCE, "--rewards", "soft:-1"], ["'soft:-1'", "positive number"]),
    "infinite-weight": ([*DANCE, "--rewards", "soft:inf"], ["'soft:inf'", "positive number"]),
    "reward-twice": ([*DANCE, "--rewards", "soft,soft:2"], ["reward 'soft' is named twice"]),
    "no-reward": ([*DANCE, "--rewards", ""], ["rewards: name at least one"]),
    "reward-without-features": ([*DANCE, "--set", "features=soft"], ["'soft' has no features", "tiny-clip"]),
    "no-jobs": ([*DANCE, "--jobs", "0"], ["--jobs 0", "at least one worker"]),
    "device": ([*DANCE, "--device", "tpu"], ["'tpu'", "cpu"]),
    "suite-elsewhere": ([*DANCE, "--suite", "../elsewhere"], ["--suite '../elsewhere'", "name"]),
    "suite-of-dots": ([*DANCE, "--suite", ".."], ["--suite '..'", "name"]),
    "json-of-a-run": ([*DANCE, "--json"], ["--json goes with --dry-run"]),
    "model-as-setting": ([*DANCE, "--set", "model=tiny-flux"], ["--model"]),
    "digest-as-setting": ([*DANCE, "--set", "prompts_digest=ab"], ["prompts_digest", "set by the program"]),
    "digest-in-config": ([*DANCE, "--config", "@/digest.yaml"], ["model_digest", "set by the program"]),
    "preset-is-no-name": ([*DANCE, "--config", "@/preset_list.yaml"], ["['quick']"]),
    "model-is-no-name": ([*DANCE, "--config", "@/model_number.yaml"], ["model", "7"]),
}

SYNTAX = {
    "no-arm": (["--algos", ","], ["no arm is named", "--algos dance,mix,branch"]),
    "open-bracket": (["--algos", "dance(tf=0.5"], ["a bracket is never closed"]),
    "closed-bracket": (["--algos", "dance)"], ["a bracket closes that was never opened"]),
    "words-after-bracket": (["--algos", "dance(tf=0.5)x"], ["name(key=value,...)"]),
    "bracket-after-bracket": (["--algos", "dance(tf=0.5)(tf=1)"], ["bracket"]),
    "arm-setting-without-value": (["--algos", "dance(tf)"], ["'tf'", "key=value"]),
    "arm-setting-twice": (["--algos", "dance(tf=0.5,tf=0.6)"], ["'tf'", "twice"]),
    "arm-twice": (["--algos", "dance,mix,dance"], ["an arm is named twice"]),
    "set-without-value": ([*DANCE, "--set", "steps"], ["'steps'", "key=value"]),
    "set-without-key": ([*DANCE, "--set", "=3"], ["'=3'", "key=value"]),
    "set-no-yaml": ([*DANCE, "--set", "steps=[1"], ["steps='[1'", "YAML"]),
    "config-absent": ([*DANCE, "--config", "absent.yaml"], ["--config absent.yaml", "no such file"]),
    "config-no-yaml": ([*DANCE, "--config", "@/broken.yaml"], ["broken.yaml is not YAML"]),
    "config-not-utf-8": ([*DANCE, "--config", "@/latin.yaml"], ["latin.yaml is not YAML", "utf-8"]),
    "config-a-list": ([*DANCE, "--config", "@/list.yaml"], ["a mapping of keys to values is wanted"]),
    "config-number-as-key": ([*DANCE, "--config", "@/number_key.yaml"], ["7", "key"]),
    "two-lines": (["--algos", "dan\nce"], ["unknown algorithm"]),
}

MATHEMATICS = {
    "split-at-the-last-step": (
        ["--algos", "branch(splits=[0,3,6,9])"],
        ["split at step 9: of 10 steps, the last that can branch is 8"],
    ),
    "splits-do-not-make-the-group": (
        ["--algos", "branch(splits=[0,1,2])"],
        ["8 leaves a prompt, but group_size is 16", "change one of them"],
    ),
    "group-is-not-the-leaves": (
        ["--algos", "branch", "--set", "group_size=12"],
        ["16 leaves a prompt, but group_size is 12"],
    ),
    "window-longer-than-the-path": (["--algos", "mix(window=10)"], ["a window of 10 steps", "does not fit"]),
    "depth-window-longer-than-the-path": (
        ["--algos", "branch-deppru(window=9)"],
        ["a window of 9 steps", "longer than the path"],
    ),
    "siblings-without-noise": (["--algos", "dance(eta=0)"], ["would be equal", "branch where the step is stochastic"]),
    "chains-without-noise": (["--algos", "dance(eta=0,roots=independent)"], ["trains nothing"]),
    "noise-below-zero": (["--algos", "dance(eta=-1)"], ["a noise level is finite and not negative"]),
    "no-noise-for-all": ([*DANCE, "--set", "eta=0"], ["clip and eta are positive"]),
    "siblings-under-an-ode": (["--algos", "dance(kernel=ode)"], ["dance(kernel=ode)", "ode"]),
    "coefficients-beyond-a-quarter-turn": (["--algos", "dance(kernel=cps,eta=1.5)"], ["cps", "1.5", "at most 1"]),
    "updates-do-not-divide-prompts": (
        [*DANCE, "--set", "updates_per_iteration=3"],
        ["updates_per_iteration=3 must divide prompts_per_iteration=8"],
    ),
    "train-steps-beyond": ([*DANCE, "--set", "train_steps=[0,9]"], ["train_steps=[0, 9]", "steps from 0 to 8"]),
    "train-steps-empty": ([*DANCE, "--set", "train_steps=[]"], ["train_steps=[]", "steps from 0 to 8"]),
    "train-steps-outside-the-window": (
        ["--algos", "mix(strategy=frozen,start=5)"],
        ["iteration 0 trains nothing", "train_steps=(0, 1, 2, 3)"],
    ),
}

FAIRNESS = {
    "shared-key-in-brackets": (
        ["--algos", "dance(group_size=8)"],
        ["'group_size' is shared by all arms", "--set group_size=..."],
    ),
    "shared-key-of-an-arm": (["--algos", "dance", "--set", "dance.lr=1"], ["'lr' is shared", "--set lr=..."]),
    "shared-key-another-arm-owns": (["--algos", "mix(roots=independent)"], ["'roots' is shared", "eta, kernel"]),
}

PLUGINS = {
    "absent": ([*DANCE, "--plugin", "absent.py"], ["--plugin absent.py: no such file"]),
    "two-of-one-name": (
        ["--algos", "my-dance", "--plugin", "@/plugin.py", "--plugin", "@/twin.py"],
        ["two plugins are called 'my-dance'", "plugin.py", "twin.py", "rename one"],
    ),
    "name-of-the-tree": (
        [*DANCE, "--plugin", "@/dance_again.py"],
        ["two plugins are called 'dance'", "algorithms.dance", "rename one"],
    ),
    "raises": ([*DANCE, "--plugin", "@/raises.py"], ["raises.py does not load", "RuntimeError: no licence"]),
    "syntax": ([*DANCE, "--plugin", "@/syntax.py"], ["syntax.py does not load", "SyntaxError"]),
    "nothing-in-it": ([*DANCE, "--plugin", "@/nothing.py"], ["nothing.py", "ARMS, REWARDS, MODELS"]),
    "no-mapping": ([*DANCE, "--plugin", "@/no_mapping.py"], ["no_mapping.py", "ARMS", "mapping"]),
    "no-algorithm": (["--algos", "seven", "--plugin", "@/no_algorithm.py"], ["'seven'", "dataclass"]),
    "no-reward": ([*DANCE, "--rewards", "seven", "--plugin", "@/no_reward.py"], ["'seven'", "info"]),
    "lower-is-better": ([*DANCE, "--rewards", "lower", "--plugin", "@/lower.py"], ["'lower' is better when lower"]),
    "plan-raises": (["--algos", "rash", "--plugin", "@/plan_raises.py"], ["rash: ZeroDivisionError"]),
    "plan-is-none": (["--algos", "idle", "--plugin", "@/plan_is_none.py"], ["idle: ", "plan"]),
    "list": (["list", "--plugin", "@/raises.py"], ["raises.py does not load"]),
}

PROMPTS = {
    "absent": ([*DANCE, "--prompts", "absent.txt"], ["'absent.txt': no such file", "one prompt a line"]),
    "empty": ([*DANCE, "--prompts", "@/empty.txt"], ["0 distinct prompts are too few", "give 40 or more"]),
    "few": ([*DANCE, "--prompts", "@/few.txt"], ["3 distinct prompts are too few", "give 40 or more"]),
    "one": ([*DANCE, "--prompts", "@/one.txt"], ["1 distinct prompt is too few", "give 40 or more"]),
    "not-utf-8": ([*DANCE, "--prompts", "@/latin.txt"], ["not UTF-8 text", "byte 3, line 1"]),
    "nul": ([*DANCE, "--prompts", "@/nul.txt"], ["nul.txt", "line 2 holds a NUL character"]),
    "number": ([*DANCE, "--prompts", "@/number.jsonl"], ["number.jsonl', line 2", "a number, 7; text is wanted"]),
    "no-column": ([*DANCE, "--prompts", "@/no_column.csv"], ["no column prompt, caption or text", "'id', 'Prompt'"]),
    "nested": ([*DANCE, "--prompts", "@/nested.json"], ["nested.json' holds an object", "a list of prompts"]),
    "no-parquet": ([*DANCE, "--prompts", "@/no.parquet"], ["no.parquet' is damaged, or no parquet"]),
    "no-set": ([*DANCE, "--prompts", "@"], ["several files that may be meant", "/FILE: "]),
    "no-hub-name": ([*DANCE, "--prompts", "hub:HPDv2"], ["hub:OWNER/NAME", "hub:ymhao/HPDv2"]),
    "hub-without-hub": ([*DANCE, "--prompts", "ymhao/HPDv2"], ["no such file", "hub:OWNER/NAME"]),
    "none": (["--algos", "dance", "--model", "@/whole", "--rewards", "soft"], ["no prompts of its own", "--prompts"]),
}

MODELS = {
    "no-pipeline": ([*DANCE, *FOLDER, "--model", "@/no_pipeline"], ["no model_index.json", "diffusers' layout"]),
    "of-another-family": ([*DANCE, *FOLDER, "--model", "@/xl"], ["is a StableDiffusionXLPipeline", "FluxPipeline"]),
    "incomplete": ([*DANCE, *FOLDER, "--model", "@/partial"], ["vae is missing", "fetch the whole"]),
    "hollow": ([*DANCE, *FOLDER, "--model", "@/hollow"], ["vae is missing", "fetch the whole"]),
    "index-cut-short": ([*DANCE, *FOLDER, "--model", "@/truncated"], ["model_index.json", "fetch the whole"]),
    "index-a-list": ([*DANCE, *FOLDER, "--model", "@/listed"], ["model_index.json", "fetch the whole"]),
    "no-folder": ([*DANCE, *FOLDER, "--model", "@/file"], ["is a file", "diffusers' layout"]),
    "no-rewards": ([*DANCE, "--model", "@/whole", "--prompts", "world"], ["name at least one", "--rewards soft"]),
    "resolution": (
        [*DANCE, *FOLDER, "--model", "@/whole", "--set", "resolution=36"],
        ["resolution=36", "multiples of 8"],
    ),
    "no-resolution": ([*DANCE, *FOLDER, "--model", "@/whole", "--set", "resolution=0"], ["resolution=0", "positive"]),
    "not-fetched": (
        [
            "--algos",
            "dance(tf=0.5)",
            "--model",
            "flux-dev",
            "--rewards",
            "soft",
            "--prompts",
            "world",
            "--iterations",
            "2",
        ],
        ["'flux-dev' is not on this machine", "bench prepare --model flux-dev"],
    ),
    "out-is-a-file": ([*DANCE, *FOLDER, "--model", "@/whole", "--out", "@/file"], ["cannot be written", "--out"]),
    "out-is-below-a-file": ([*DANCE, *FOLDER, "--model", "@/whole", "--out", "@/file/runs"], ["cannot be", "--out"]),
}

GROUPS = {
    "name": NAMES,
    "value": VALUES,
    "syntax": SYNTAX,
    "mathematics": MATHEMATICS,
    "fairness": FAIRNESS,
    "plugin": PLUGINS,
    "prompts": PROMPTS,
    "model": MODELS,
}
CASES = [
    pytest.param(words, says, id=f"{group}-{name}")
    for group, cases in GROUPS.items()
    for name, (words, says) in cases.items()
]
WRONG = [words for cases in GROUPS.values() for words, _ in cases.values()]


def placed(words: list[str], files: Path) -> list[str]:
    return [word.replace("@", str(files)) for word in words]


@pytest.mark.parametrize(("words", "says"), CASES)
def test_wrong_input_is_one_line_and_status_2(words, says, call, files, tmp_path):
    answer = call(placed(words, files))

    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith("bench: ")
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1
    assert [part for part in says if part not in answer.err] == [], answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "count", "says"),
    [
        ([*DANCE, "--preset", "smoke"], "5", "torchrun started 5 processes for prompts_per_iteration=2"),
        ([*DANCE, "--preset", "smoke", "--jobs", "2"], "2", "under torchrun the processes that it started do the work"),
        (["list"], "2", "bench list takes one process"),
    ],
)
def test_what_torchrun_started_wrongly_is_told_once(words, count, says, call, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", count)
    for rank, spoken in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        answer = call(words)
        assert answer.status == 2
        assert (says in answer.err) == spoken


def test_a_tracker_that_is_not_installed_names_what_brings_it(call, monkeypatch):
    monkeypatch.setattr("bench.arguments.find_spec", lambda _: None)
    assert "pip install 'arbor-bench[trackers]'" in call([*DANCE, "--track", "wandb"]).err


def test_a_model_that_starts_from_an_image_needs_one_of_every_prompt(call, files, tmp_path, monkeypatch):
    animated = dataclasses.replace(FAMILIES["FluxPipeline"], first_frame=True)
    monkeypatch.setattr("bench.models.catalog.FAMILIES", {"FluxPipeline": animated})
    Image.new("RGB", (4, 4)).save(tmp_path / "frame.png")
    words = [*DANCE, *FOLDER, "--model", str(files / "whole"), "--dry-run", "--prompts", str(tmp_path / "frames.csv")]

    for without, status in ((3, 2), (0, 0)):
        rows = [f"a picture of {n} cats,{'frame.png' if n >= without else ''}\n" for n in range(60)]
        (tmp_path / "frames.csv").write_text("prompt,image\n" + "".join(rows))
        answer = call(words)
        assert answer.status == status, answer.err
        assert ("needs a column `image`, with a file for every prompt; 3 have none" in answer.err) is bool(without)


def test_a_closed_suite_refuses_a_second_shared_configuration(call, tmp_path):
    words = [*DANCE, "--model", "tiny-flux", "--preset", "smoke", "--suite", "mine"]
    write(make_suite(run_parser().parse_args([*words, "--set", "steps=8"])))
    before = tree(tmp_path)

    answer = call([*words, "--set", "steps=9", "--set", "lr=0.1"])

    assert answer.status == 2
    assert "suite mine is closed and was run with steps=8, not 9 (2 keys differ)" in answer.err
    assert "another --suite" in answer.err
    assert "--open" in answer.err
    assert answer.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_an_open_suite_takes_a_second_shared_configuration(call):
    words = [*DANCE, "--model", "tiny-flux", "--preset", "smoke", "--suite", "mine"]
    write(make_suite(run_parser().parse_args(words)))

    assert call([*words, "--set", "steps=9", "--open", "--dry-run"]).status == 0


def test_another_arm_or_seed_is_no_second_shared_configuration(call):
    words = ["--model", "tiny-flux", "--preset", "smoke", "--suite", "mine", "--dry-run"]
    write(make_suite(run_parser().parse_args([*DANCE, *words])))

    assert call(["--algos", "mix,branch", "--seeds", "3", *words]).status == 0


def test_a_registered_model_whose_weights_are_absent_says_what_makes_them(call, tmp_path, monkeypatch):
    absent = dataclasses.replace(MODELS_OF_CATALOG["tiny-flux"], source=str(tmp_path / "gone" / "tiny-flux"))
    monkeypatch.setattr("bench.models.catalog.MODELS", {"tiny-flux": absent})

    answer = call(DANCE)

    assert answer.status == 2
    assert "bench.embedded.make" in answer.err
    assert call([*DANCE, "--dry-run"]).status == 0


HEAVY = ("torch", "diffusers", "transformers", "accelerate")
SCRIPT = f"""
import contextlib, io, json, sys
from bench.run import main
said = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(words)
        except SystemExit as end:  # --help
            status = end.code
    said.append([status, [name for name in {HEAVY} if name in sys.modules]])
json.dump(said, sys.stdout)
"""


def test_help_dry_run_list_and_every_input_error_answer_before_torch_is_imported(files, tmp_path):
    wrong = [placed(words, files) for words in WRONG]
    right = [["--help"], ["list"], ["list", "--help"], ["--algos", "all", "--dry-run"]]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([*right, *wrong]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )

    assert json.loads(process.stdout) == [[0, []]] * len(right) + [[2, []]] * len(wrong)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
