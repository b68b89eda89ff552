"""The errors users meet, and the checks that raise them: what was got, what is allowed and what to do."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class DecentralError(Exception):
    """Base class of every error this package raises on purpose."""


class InvalidInput(DecentralError, ValueError):
    """An argument, a key of a spec or a file is not acceptable; nothing was run or written (exit status 2).

    Args:
        name: the argument or dotted key, e.g. ``"topology.n"``.
        got: the value received.
        allowed: what would be accepted, in words.
        advice: what to do next, one sentence.
    """

    def __init__(self, name: str, got: object, allowed: str, advice: str = "") -> None:
        self.name, self.got, self.allowed, self.advice = name, got, allowed, advice
        super().__init__(f"{name}: got {got!r}; allowed: {allowed}." + (f" {advice}" if advice else ""))


class InvalidInputs(InvalidInput):
    """Several problems found in one reading; ``problems`` holds a message for each."""

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = f"{where}: {self.problems[0]}"
        else:
            message = "\n- ".join([f"{where}: {len(self.problems)} problems", *self.problems])
        DecentralError.__init__(self, message)


class MissingExtra(InvalidInput):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        DecentralError.__init__(
            self,
            f"{what} needs the package {package}, which is not installed. Run: pip install 'decentral[{extra}]'",
        )


class RunFailed(DecentralError, RuntimeError):
    """A run started and could not finish (exit status 1); everything recorded before the failure is kept."""


def suggest(word: str, allowed: Iterable[str]) -> str:
    """The sentence that lists the allowed names, nearest one first: ``"Did you mean 'ring'? Allowed: ..."``."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + "Allowed: " + ", ".join(names)


def check_integer(name: str, value: Any, minimum: int, maximum: float = math.inf) -> int:
    """``value`` as an int, or InvalidInput if it is not a whole number in [minimum, maximum]."""
    whole = issubclass(type(value), numbers.Integral) and not isinstance(value, bool)
    if not whole or not minimum <= value <= maximum:
        bound = f"at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise InvalidInput(name, value, f"a whole number, {bound}")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """True or false, and nothing that counts as one of them."""
    if not isinstance(value, bool):
        raise InvalidInput(name, value, "true or false")


def check_number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """``value`` as a float, or InvalidInput if not a finite number in [low, high] (above: in (low, high])."""
    real = issubclass(type(value), numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise InvalidInput(
            name, value, f"a finite number, {bound}" + (f", at most {high:g}" if high < math.inf else "")
        )
    return float(value)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is one of the ``allowed`` words; otherwise a message with the nearest one."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(name, value, "one of the names below", suggest(str(value), allowed))
    return value
