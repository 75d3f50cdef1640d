import csv
import json

import numpy as np
import pytest
from synthetic_suite import write_cell, write_measured_diversity, write_suite

from bench.record import read_diversity
from reports.build import build
from reports.diversity import (
    diversity_grid,
    diversity_legend,
    principal,
    projection,
    published_diversity_grid,
    terminal,
    thinned,
)


def measured(tmp_path, arms):
    tmp_path.mkdir(exist_ok=True)
    return read_diversity(write_measured_diversity(tmp_path, arms))


def test_the_table_has_a_row_an_arm_and_names_the_floor(tmp_path):
    table = diversity_grid(measured(tmp_path, {"dance": "dance", "branch": "branch"}))
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [["dance", "24", "0.0123", "0.001", "6.75"], ["branch", "24", "0.0246", "−0.0045", "7.75"]]
    assert [row[0].sub for row in table.rows] == ["reference: the floor", ""]


def test_the_legend_says_what_was_measured(tmp_path):
    text = " ".join(diversity_legend(measured(tmp_path, {"dance": "dance", "branch": "branch"})))
    for part in ("first 4 iterations of seed 0", "noise of seed 1", "24 images", "tiny-clip", "bandwidth 12.5"):
        assert part in text


@pytest.mark.parametrize(
    ("arms", "rows"),
    [
        (
            {"dance": "dance", "branch(s=2)": "branch"},
            [("Inception", "0.0057", "0.0067"), ("CLIP", "0.00022", "0.0149")],
        ),
        ({"branch": "branch", "dance": "dance"}, []),
        ({"dance": "dance", "mix": "mix"}, []),
        ({"mix": "mix", "branch": "branch"}, []),
        ({"dance": "dance"}, []),
    ],
)
def test_published_distances_stand_beside_the_pair_of_methods_they_are_of(tmp_path, arms, rows):
    table = published_diversity_grid(measured(tmp_path, arms))
    assert [tuple(cell.text for cell in row[1:]) for row in table.rows] == rows


def test_without_a_measurement_there_is_nothing(tmp_path):
    assert read_diversity(tmp_path) is None
    assert diversity_grid(None).rows == ()
    assert published_diversity_grid(None).rows == ()
    assert (terminal(None), diversity_legend(None), projection(None)) == ([], [], None)


def test_principal_axes_are_those_of_most_variance():
    angle = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    features = np.stack([np.full(50, 7.0), np.cos(angle), -5 * np.sin(angle)], axis=1)
    coordinates, explained = principal(features)
    assert explained == pytest.approx((25 / 26, 1 / 26))
    assert np.allclose(coordinates[:, 0], -5 * np.sin(angle))  # the axis points where its component is positive
    assert np.allclose(coordinates[:, 1], np.cos(angle))


def test_principal_axes_have_the_sign_of_their_largest_component():
    features = np.outer(np.arange(5.0), [1.0, -3.0]) + np.outer([0, 1, 0, 1, 0], [0.3, 0.1])
    coordinates, _ = principal(features)
    assert coordinates[0, 0] > coordinates[-1, 0]


def test_all_arms_share_the_axes(tmp_path):
    found = projection(measured(tmp_path, {"dance": "dance", "branch": "branch", "mix": "mix"}))
    assert found is not None
    assert [label for label, _ in found.arms] == ["dance", "branch", "mix"]
    together = np.concatenate([points for _, points in found.arms])
    assert np.allclose(together.mean(axis=0), 0)
    # Each arm is the one before, moved by the same step.
    steps = [found.arms[at + 1][1] - found.arms[at][1] for at in (0, 1)]
    assert np.allclose(steps[0], steps[0][0])
    assert np.allclose(steps[0], steps[1])


def test_points_are_thinned_evenly():
    points = np.arange(20.0).reshape(10, 2)
    assert thinned(points, 5)[:, 0].tolist() == [0, 4, 8, 12, 16]
    assert len(thinned(points, 50)) == 10


def test_the_report_shows_a_panel_an_arm_beside_the_reference(tmp_path):
    suite = write_suite(tmp_path / "demo")
    write_cell(suite, "branch", 0, algo="branch")
    write_measured_diversity(suite, {"dance": "dance", "branch": "branch", "mix": "mix"})
    report = build(suite, tmp_path / "reports")
    names = {path.name for path in report.files}
    assert {"embedding-1.svg", "embedding-2.svg", "diversity.tex", "diversity.csv"} <= names
    assert "embedding-3.svg" not in names
    page = report.page.read_text()
    assert "branch beside dance" in page
    assert "BranchGRPO against DanceGRPO rollouts" in page
    assert any(line.startswith("dance (reference: the floor)") for line in report.lines)
    with (report.folder / "diversity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["kid"])) for row in rows] == [
        ("dance", 0.0123),
        ("branch", 0.0246),
        ("mix", pytest.approx(0.0369)),
    ]


def test_a_record_of_a_later_version_is_refused(tmp_path):
    folder = write_measured_diversity(tmp_path, {"dance": "dance"})
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"version": 99}))
    with pytest.raises(ValueError, match="upgrade"):
        read_diversity(folder)
