"""Devices: units, names, tags."""

import pytest

from decentral import InvalidInput
from decentral.hardware import DEVICES, HARDWARE, device


def test_units_are_flops_bytes_and_seconds():
    h100 = device("H100-SXM5-80GB")
    assert h100.peak_flops("bf16") == 989.5e12
    assert h100.memory_bytes == 80e9
    assert h100.memory_bytes_per_s == 3.35e12
    assert h100.scaleup_bytes_per_s == h100.peer_bytes_per_s == 450e9, "NVLink 4: 900 GB/s both ways"
    assert h100.power_w == 700
    assert device("TPU v5p").scaleup_bytes_per_s == 6 * 90e9, "a torus: two links on each of three axes"
    assert device("TPU v3").scaleup_bytes_per_s is None


def test_peaks_double_when_the_format_halves():
    """Vendor tables, dense: tf32, bf16, fp8 in ratios 1 : 2 : 4 on Ampere, Hopper and Blackwell."""
    for name in ("H100-SXM5-80GB", "H200-SXM", "B200-SXM"):
        peaks = DEVICES[name].peaks
        assert peaks["bf16"] / peaks["tf32"] == pytest.approx(2, rel=0.01)
        assert peaks["fp8"] / peaks["bf16"] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("name", ["a100-sxm4-80gb", "A100-SXM4-8", "A100-SXM4-80GB"])
def test_names_in_any_case_and_unique_beginnings(name):
    assert device(name) is DEVICES["A100-SXM4-80GB"]


def test_a_whole_name_wins_over_the_beginning_of_another():
    assert device("tpu v4").name == "TPU v4"
    assert device("T4").name == "T4"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("A100", "A100-SXM4-40GB, A100-SXM4-80GB, A100-PCIe-80GB"),
        ("H200-SMX", "Did you mean 'H200-SXM'"),
        ("", "Allowed"),
    ],
)
def test_names_that_mean_none_or_several_are_refused(name, words):
    with pytest.raises(InvalidInput, match=words):
        device(name)


@pytest.mark.parametrize(
    ("name", "dtype", "words"), [("V100", "bf16", "fp16, fp32"), ("H100-96GB", "bf16", "none.*not known")]
)
def test_a_peak_that_is_not_known_is_refused(name, dtype, words):
    with pytest.raises(InvalidInput, match=words):
        device(name).peak_flops(dtype)


def test_every_number_has_a_source_and_a_tag():
    assert {known.tag for known in DEVICES.values()} == {"read", "partly read", "recalled"}
    for known in DEVICES.values():
        assert known.sources
        assert known.memory_bytes > 0
        assert known.memory_bytes_per_s > 0
        assert all(peak > 1e12 for peak in known.peaks.values())
        fields = {"memory_bytes", "memory_bytes_per_s", "power_w", "compute_units", *known.peaks}
        assert set(known.recalled) <= fields
    b300 = device("B300")
    assert b300.tag_of("bf16") == "partly read"
    assert b300.tag_of("memory_bytes") == b300.tag_of("fp8") == "recalled"
    assert device("A100-SXM4-80GB").tag_of("bf16") == "read"
    assert "source" in HARDWARE["clusters"][0]
    assert "TFLOP/s dense" in HARDWARE["units"]
