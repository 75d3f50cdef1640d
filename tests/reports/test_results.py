import json
import math

import numpy as np
import pytest
from synthetic_suite import BASE, BRANCH, DANCE, MIX, SHARED, UNITS, base_scores, write_cell, write_suite

from bench.record import read_suite, write_json
from reports.arms import arms
from reports.curves import curves
from reports.results import Line, results
from reports.tables import failures_grid, warnings_grid

T2 = 4.302652729911275
"""Student's t with 2 degrees of freedom, 97.5 %; of a table."""


@pytest.fixture
def suite(tmp_path):
    return write_suite(tmp_path / "demo")


def lines_of(suite) -> dict[str, Line]:
    return {line.label: line for line in results(read_suite(suite)).lines}


def change(path, **values):
    write_json(path, {**json.loads(path.read_text()), **values})


def test_the_base_model_comes_first_with_its_scores_and_the_drift_floor(suite):
    write_cell(suite, "dance", 0)
    first = results(read_suite(suite)).lines[0]
    assert (first.label, first.is_base, first.kid, first.mmd2) == ("base model", True, 0.0002, 0.0001)
    assert first.scores["soft"].mean == pytest.approx(base_scores().mean())
    assert first.scores["soft"].gain is None


def test_an_arm_is_the_mean_over_its_seeds_with_the_paired_interval(suite):
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        write_cell(suite, "dance", seed, gain=gain)
    line = lines_of(suite)["dance"]
    gain = line.scores["soft"].gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.2)
    assert gain.high == pytest.approx(0.2 + T2 * 0.1 / math.sqrt(3))
    assert line.scores["soft"].mean == pytest.approx(base_scores().mean() + 0.2)
    assert line.scores["strict"].mean == pytest.approx(base_scores().mean() + 0.1)
    assert line.kid == pytest.approx((0.010 + 0.011 + 0.012) / 3)
    assert (line.seeds, line.unfinished, line.samples) == (3, 0, 3 * 4 * 128)


def test_seconds_are_the_median_over_seeds(suite):
    for seed, rollout in enumerate((1.0, 2.0, 9.0)):
        write_cell(suite, "dance", seed, seconds={"rollout": rollout, "update": 1.0})
    seconds = lines_of(suite)["dance"].seconds
    assert seconds == {"rollout": 2.0, "update": 1.0, "total": 3.0}


def test_flops_count_an_update_call_three_times(suite):
    write_cell(suite, "dance", 0, flops=2e9)
    write_cell(suite, "mix", 0, algo="mix", algorithm=MIX)
    lines = lines_of(suite)
    assert lines["dance"].flops == pytest.approx(2e9 * (100 + 3 * 50))
    assert lines["mix"].flops is None


def test_failed_scores_are_left_out_in_pairs(suite):
    gain = np.zeros((6, 2))
    gain[0] = 0.4
    after = (base_scores() + gain).tolist()
    after[1] = [None, None]
    write_cell(suite, "dance", 0, evaluation={"soft": after})
    score = lines_of(suite)["dance"].scores["soft"]
    assert score.gain is not None
    assert score.gain.mean == pytest.approx(0.4 / 5)
    assert score.gain.n == 5


def test_where_lower_is_better_a_fall_is_an_improvement(suite):
    units = {**UNITS, "soft": {**UNITS["soft"], "higher_is_better": False}}
    cell = write_cell(suite, "dance", 0, gain=-0.1)
    change(cell / "result.json", units=units)
    change(suite / BASE / "result.json", units=units)
    scores = lines_of(suite)["dance"].scores
    assert scores["soft"].gain is not None
    assert scores["soft"].gain.mean == pytest.approx(0.1)
    assert scores["strict"].gain is not None
    assert scores["strict"].gain.mean == pytest.approx(-0.05)


def marked(suite) -> set[str]:
    return {label for label, line in lines_of(suite).items() if any(score.best for score in line.scores.values())}


@pytest.mark.parametrize(
    ("mix", "best"),
    [
        ((0.30, 0.31, 0.32), {"mix"}),
        ((0.10, 0.20, 0.30), set()),
        ((-0.30, -0.31, -0.32), {"dance"}),
    ],
)
def test_the_best_is_marked_only_if_no_interval_reaches_it(suite, mix, best):
    for seed in range(3):
        write_cell(suite, "dance", seed, gain=0.10 + 0.01 * seed)
        write_cell(suite, "mix", seed, algo="mix", algorithm=MIX, gain=mix[seed])
    assert marked(suite) == best


def test_the_least_bad_is_not_marked(suite):
    for seed in range(3):
        write_cell(suite, "dance", seed, gain=-0.10 + 0.001 * seed)
        write_cell(suite, "mix", seed, algo="mix", algorithm=MIX, gain=-0.50 + 0.001 * seed)
    assert marked(suite) == set()


def test_one_seed_marks_nothing(suite):
    varied = np.linspace(0, 0.001, 12).reshape(6, 2)
    write_cell(suite, "dance", 0, gain=0.1 + varied)
    write_cell(suite, "mix", 0, algo="mix", algorithm=MIX, gain=0.5 + varied)
    assert marked(suite) == set()


def test_a_lone_arm_is_not_marked(suite):
    for seed in range(3):
        write_cell(suite, "dance", seed, gain=0.10 + 0.01 * seed)
    assert marked(suite) == set()


def test_an_unfinished_arm_is_listed_and_an_unfinished_seed_counted(suite):
    write_cell(suite, "dance", 0)
    write_cell(suite, "dance", 1, done=False)
    write_cell(suite, "branch", 0, algo="branch", algorithm=BRANCH, done=False)
    lines = lines_of(suite)
    assert (lines["dance"].seeds, lines["dance"].unfinished) == (1, 1)
    assert (lines["branch"].seeds, lines["branch"].unfinished, lines["branch"].scores) == (0, 1, {})


def test_metrics_are_told_apart_by_whether_they_are_trained_on(suite):
    write_cell(suite, "dance", 0)
    assert {metric.name: metric.trained for metric in results(read_suite(suite)).metrics} == {
        "soft": True,
        "strict": False,
    }


def test_a_suite_without_a_cell_shows_its_base(suite):
    assert [line.label for line in results(read_suite(suite)).lines] == ["base model"]


def test_a_missing_base_and_scores_of_other_prompts_are_refused(suite):
    cell = write_cell(suite, "dance", 0)
    change(cell / "result.json", base="base-gone")
    with pytest.raises(ValueError, match="dance seed 0 is measured against base-gone"):
        results(read_suite(suite))
    change(cell / "result.json", base=BASE, evaluation={"soft": [[0.1, 0.2]]})
    with pytest.raises(ValueError, match="1 prompts × 2 samples, its base model of 6 × 2"):
        results(read_suite(suite))


def test_one_name_under_two_settings_is_two_arms(suite):
    write_cell(suite, "dance", 0)
    write_cell(suite, "dance", 1, algorithm={**DANCE, "tf": 0.6})
    write_cell(suite, "dance", 2)
    found = arms(read_suite(suite))
    assert [(arm.label, len(arm.cells)) for arm in found] == [("dance [tf=1.0]", 2), ("dance [tf=0.6]", 1)]


def test_failures_and_warnings_are_listed_by_cell(suite):
    write_cell(suite, "dance", 0)
    write_cell(suite, "dance", 1, failed=1)
    write_cell(suite, "dance", 2, failed=2)
    found = arms(read_suite(suite))
    texts = [[[cell.text for cell in row] for row in table(found).rows] for table in (failures_grid, warnings_grid)]
    assert texts == [
        [["dance", "1", "4", "soft: no face found"], ["dance", "2", "8", "soft: no face found"]],
        [["dance", "2", "4 of 4", "log-probs drift"]],
    ]


def test_curves_cumulate_what_was_spent_and_span_the_seeds(suite):
    write_cell(suite, "dance", 0, rewards=[0.1, 0.2, 0.3], seconds={"rollout": 1.0, "update": 1.0})
    write_cell(suite, "dance", 1, rewards=[0.3, 0.4, 0.5], seconds={"rollout": 2.0, "update": 1.0})
    write_cell(suite, "dance", 2, rewards=[0.9], done=False)
    (curve,) = curves(arms(read_suite(suite)))
    assert (curve.seeds, curve.finished) == (2, True)
    np.testing.assert_allclose(curve.mean, [0.2, 0.3, 0.4])
    np.testing.assert_allclose(curve.low, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(curve.high, [0.3, 0.4, 0.5])
    expected = {
        "iterations": [1, 2, 3],
        "rollout_calls": [100, 200, 300],
        "update_calls": [50, 100, 150],
        "seconds": [2.5, 5.0, 7.5],
    }
    assert {axis: x.tolist() for axis, x in curve.x.items()} == expected


def test_a_running_arm_has_a_curve(suite):
    write_cell(suite, "dance", 0, rewards=[0.1, 0.2, 0.3], done=False)
    (curve,) = curves(arms(read_suite(suite)))
    assert not curve.finished
    np.testing.assert_allclose(curve.mean, [0.1, 0.2, 0.3])


def test_a_control_suite_whose_reward_is_not_evaluated_trains_on_no_metric(tmp_path):
    suite = write_suite(tmp_path / "control", shared={**SHARED, "rewards": ["random"]})
    write_cell(suite, "dance", 0, shared={**SHARED, "rewards": ["random"]})
    assert not any(metric.trained for metric in results(read_suite(suite)).metrics)
