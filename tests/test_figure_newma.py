"""The comparison of detectors, made small: the code's features find changes of variance sooner than the mean does."""

from pathlib import Path

import pytest

from decentral.experiment.figures import load_script

SCRIPT = Path(__file__).parents[1] / "paper_figures" / "optical_figure_newma.py"


@pytest.fixture(scope="module")
def small():
    module = load_script(SCRIPT)
    for name, value in {"SEGMENTS": 15, "LENGTH": 600, "STREAMS": 1, "AT_ONCE": 600, "ROWS": 200}.items():
        setattr(module, name, value)
    return module


@pytest.mark.slow
def test_on_a_code_features_find_changes_of_variance_sooner(small):
    # Mean features see little of it. 10 changes: the ordering is that of the full comparison, the numbers are not.
    found = {case: small.judged(case)[0] for case in ("identity", "optical", "fourier_bits")}
    for case in ("optical", "fourier_bits"):
        assert found[case].false_alarms <= 1
        assert found[case].missed < found["identity"].missed
        assert found[case].delay < found["identity"].delay


def test_every_map_has_as_many_rows_or_numbers_as_it_says(small):
    samples, changes = small.stream(0)
    assert samples.shape == (15 * 600, 100)
    assert changes.tolist() == [600 * k for k in range(5, 15)]
    code = small.code(0)
    assert code.shape == (15 * 600, 1600)
    assert code[: 5 * 600].mean() == pytest.approx(0.5, abs=0.01)  # thresholds are quantiles of this part
