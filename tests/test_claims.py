"""A claim's verdict follows from what was measured, and what fails is told like what holds."""

import json
import math

import numpy as np
import pytest

from decentral.analysis.claims import Checked, Claim, markdown_table, over_seeds, slopes
from decentral.errors import InvalidInput


def claim(**other):
    fields = {
        "id": "B3", "paper": "DADAO", "statement": "gradients grow as sqrt(kappa)", "source": "abstract", "tag": "read",
        "tier": "convex", "accepted": (0.42, 0.56),
    }  # fmt: skip
    return Claim(**fields | other)


@pytest.mark.parametrize(
    ("measured", "interval", "verdict"),
    [
        (0.5, None, "holds"),
        (0.42, None, "holds"),  # the range's ends belong to it
        (0.6, None, "does not hold"),
        (math.nan, None, "does not hold"),
        (math.inf, None, "does not hold"),
        (0.5, (0.45, 0.55), "holds"),
        (0.5, (0.40, 0.60), "undecided"),
        (0.6, (0.50, 0.70), "undecided"),
        (0.6, (0.57, 0.63), "does not hold"),
        (0.5, (math.nan, math.nan), "holds"),  # one seed: no interval
    ],
)
def test_verdict(measured, interval, verdict):
    checked = claim().check(measured, interval)
    assert checked.verdict == verdict
    assert ("more seeds" in checked.reason) == (verdict == "undecided")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.7, 1.9), "holds"),
        ((1.0, 3.0), "holds"),
        ((1.0, 1.7), "does not hold"),
        ((2.3, 3), "does not hold"),
    ],
)
def test_same_as_claims_hold_where_the_interval_meets_the_range(interval, verdict):
    assert claim(accepted=(1.8, 2.2), rule="meets").check(1.5, interval).verdict == verdict


def test_undecided_for_a_reason():
    checked = claim().check(0.5, undecided="the best step is on the edge of its grid")
    assert checked.verdict == "undecided"
    assert checked.line.endswith("undecided (the best step is on the edge of its grid)")


def test_open_ranges():
    assert claim(accepted=(10.0, None)).check(1e9).verdict == "holds"
    assert claim(accepted=(None, 0.0)).check(1e-9).verdict == "does not hold"


def test_line_says_what_where_from_measured_accepted_and_verdict():
    line = claim().check(0.4697, (0.4624, 0.4769), note="5 seeds").line
    assert line == (
        "B3 (DADAO, convex; read: abstract) gradients grow as sqrt(kappa): 0.4697 [0.4624, 0.4769], accepted 0.42 to 0.56: "
        "holds [5 seeds]"
    )


def test_toy_networks_show_a_mechanism_or_not():
    words = [claim(tier="toy network").check(value).words for value in (0.5, 1.0)]
    assert words == ["mechanism shown", "mechanism not shown"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tag", "red"),
        ("tier", "toy"),
        ("rule", "near"),
        ("accepted", (2.0, 1.0)),
        ("accepted", (math.nan, 1.0)),
    ],
)
def test_refuses(field, value):
    with pytest.raises(InvalidInput, match=f"claim.{field}"):
        claim(**{field: value})


@pytest.mark.parametrize(
    "checked",
    [claim().check(0.5, (0.4, 0.6)), claim(accepted=(None, 1.0), rule="meets").check(0.3, note="a note")],
)
def test_json_holds_everything(checked):
    assert Checked.from_dict(json.loads(json.dumps(checked.as_dict()))) == checked


def test_table_keeps_what_fails_and_sorts_ids_by_number():
    found = {
        "paper_figures/b.py": [
            claim(id="B10").check(9.0),
            claim(id="B2", statement="|E| of them").check(0.5),
        ],
        "paper_figures/a.py": [claim(paper="A2CiD2", id="C1").check(0.5)],
    }
    table = markdown_table(found)
    rows = [line for line in table.splitlines() if line.startswith(("| B", "| C"))]
    assert [row.split(" | ")[0] for row in rows] == ["| C1", "| B2", "| B10"]
    assert "**does not hold**" in rows[2]
    assert "[b.py](../paper_figures/b.py)" in rows[2]
    assert "\\|E\\| of them" in rows[1]
    assert table.index("## A2CiD2") < table.index("## DADAO")
    assert "3 claims: 2 holds, 1 does not hold." in table


def test_slopes_of_powers():
    x = np.array([9, 16, 36])
    y = np.stack([3 * x**1.5, 0.1 * x**2.0], axis=1)
    np.testing.assert_allclose(slopes(x, y), [1.5, 2.0], rtol=1e-12)
    assert np.isnan(slopes(x, [[1.0], [math.inf], [2.0]])).all()  # a target that was not reached


def test_over_seeds_is_students_t():
    mean, (low, high) = over_seeds([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert np.isnan(over_seeds([1.0])[1]).all()
