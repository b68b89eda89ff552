"""Parameters of tests."""

from __future__ import annotations

from collections.abc import Container, Iterable

import pytest


def mostly_slow(cases: Iterable, fast: Container) -> list:
    """All cases, those not in ``fast`` marked slow: for tests that mostly compile."""

    def slow(case):
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)

    return [case if case in fast else slow(case) for case in cases]
