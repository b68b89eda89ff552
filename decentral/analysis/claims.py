"""Claims of papers that a figure checks: what was said, where it is known from, what was measured, and the verdict.

A claim that fails is kept like any other. Nothing here needs JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from decentral.analysis.statistics import mean_interval
from decentral.errors import InvalidInput, suggest

TAGS = {
    "read": "read in the paper",
    "code": "read in the authors' published code, or in its output",
    "recalled": "remembered from the paper, not verified against it",
    "derived": "follows from the equations",
}
"""How a claim is known."""
TIERS = {
    "exact": "computed without drawing anything",
    "convex": "runs on convex problems",
    "toy network": "runs of small neural networks: they can show a mechanism, not reproduce a result",
    "network on GPU": "runs of neural networks of a usual size",
}
"""What a claim is checked with."""
VERDICTS = ("holds", "does not hold", "undecided")
_SHOWN = {"holds": "mechanism shown", "does not hold": "mechanism not shown"}
RULES = ("inside", "meets")
NOT_JUDGED = "smoke test: not judged"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """What a paper, or whoever measured before, says.

    Args:
        id: of the target, e.g. ``"B3"``; several claims may share one.
        paper: e.g. ``"DADAO"``: groups the table.
        statement: one sentence; it names the quantity that is measured.
        source: where it stands, in words, with the confidence of what is recalled.
        tag: how it is known, a key of :data:`TAGS`.
        tier: what it is checked with, a key of :data:`TIERS`.
        accepted: ``(low, high)``, inclusive; None: no bound.
        rule: what an interval has to do: ``"inside"``: lie in the accepted range (across its edge is undecided);
            ``"meets"``: have a value in common with it (for "the same as" claims).
    """

    id: str
    paper: str
    statement: str
    source: str
    tag: str
    tier: str
    accepted: tuple[float | None, float | None]
    rule: str = "inside"

    def __post_init__(self) -> None:
        for name, allowed in (("tag", TAGS), ("tier", TIERS), ("rule", RULES)):
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidInput(f"claim.{name}", value, f"a {name}", suggest(str(value), allowed))
        low, high = self.range
        if not low <= high:
            raise InvalidInput("claim.accepted", self.accepted, "(low, high) with low <= high")

    @property
    def range(self) -> Interval:
        """``accepted`` with infinite bounds where there are none."""
        low, high = self.accepted
        return -math.inf if low is None else low, math.inf if high is None else high

    def check(
        self,
        measured: float,
        interval: Interval | None = None,
        *,
        undecided: str = "",
        note: str = "",
    ) -> Checked:
        """Compare with what was measured.

        Args:
            measured: the value; one that is not finite does not hold, whatever the range.
            interval: its 95 % interval ``(low, high)``; None, or NaN, where there is none.
            undecided: why no verdict can be given (an optimum on the edge of a tuning grid, too few seeds); empty: it can.
            note: what a reader has to know beside the number.
        """
        if interval is not None and not np.isfinite(interval).all():
            interval = None
        low, high = self.range
        reason = undecided
        if undecided:
            verdict = "undecided"
        elif not math.isfinite(measured):
            verdict, reason = "does not hold", "no finite value was measured"
        elif interval is None:
            verdict = "holds" if low <= measured <= high else "does not hold"
        else:
            outside = interval[1] < low or interval[0] > high
            inside = low <= interval[0] and interval[1] <= high
            verdict = (
                "does not hold" if outside else "holds" if inside or self.rule == "meets" else "undecided"
            )
            if verdict == "undecided":
                reason = "the interval lies across the edge of the accepted range: more seeds are needed"
        return Checked(self, float(measured), interval, verdict, reason, note)


@dataclass(frozen=True)
class Checked:
    """A claim beside what was measured.

    Attributes:
        claim: what was said.
        measured: the value.
        interval: its 95 % interval, or None.
        verdict: one of :data:`VERDICTS`.
        reason: why it is undecided, or holds nothing.
        note: what a reader has to know beside the number.
    """

    claim: Claim
    measured: float
    interval: Interval | None
    verdict: str
    reason: str = ""
    note: str = ""

    @property
    def words(self) -> str:
        """The verdict as it is printed: a toy network shows a mechanism or does not, it never reproduces."""
        return _SHOWN.get(self.verdict, self.verdict) if self.claim.tier == "toy network" else self.verdict

    @property
    def line(self) -> str:
        """The printed line."""
        return self.line_with(self.words + (f" ({self.reason})" if self.reason else ""))

    def line_with(self, verdict: str) -> str:
        """The printed line with other words for its verdict."""
        claim = self.claim
        note = f" [{self.note}]" if self.note else ""
        return (
            f"{claim.id} ({claim.paper}, {claim.tier}; {claim.tag}: {claim.source}) {claim.statement}: "
            f"{self.measured_words}, accepted {range_words(claim.accepted)}: {verdict}{note}"
        )

    @property
    def measured_words(self) -> str:
        """The value with its interval."""
        if self.interval is None:
            return number(self.measured, 6)
        return f"{number(self.measured)} [{number(self.interval[0])}, {number(self.interval[1])}]"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the fields of both, and the verdict's words."""
        plain = dataclasses.asdict(self.claim) | {
            "accepted": list(self.claim.accepted),
            "measured": self.measured if math.isfinite(self.measured) else None,
            "interval": None if self.interval is None else list(self.interval),
        }
        return plain | {name: getattr(self, name) for name in ("verdict", "words", "reason", "note")}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Checked:
        """What :meth:`as_dict` wrote."""
        fields: dict[str, Any] = {field.name: plain[field.name] for field in dataclasses.fields(Claim)}
        fields["accepted"] = tuple(plain["accepted"])
        measured = math.nan if plain["measured"] is None else plain["measured"]
        interval = None if plain["interval"] is None else tuple(plain["interval"])
        return cls(Claim(**fields), measured, interval, plain["verdict"], plain["reason"], plain["note"])


def number(value: float, digits: int = 4) -> str:
    """So many significant digits; whole numbers up to a million in full."""
    if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{digits}g}"


def range_words(accepted: tuple[float | None, float | None]) -> str:
    """The accepted range in words."""
    low, high = accepted
    if low is None:
        return "any value" if high is None else f"at most {high:.6g}"
    return f"at least {low:.6g}" if high is None else f"{low:.6g} to {high:.6g}"


def over_seeds(values: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """``(mean, interval)`` of one value per seed, by Student's t; the interval of one seed is NaN.

    Args:
        values: ``(seeds,)``.
        level: the confidence level.
    """
    mean, half = mean_interval(np.asarray(values, float), level=level)
    return float(mean), (float(mean - half), float(mean + half))


def ratio_over_seeds(above: ArrayLike, below: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """``(ratio of the means, interval)`` of two values per seed, paired: t on the logarithms' jackknife.

    The ratio of means is what the theory's expectations ask for; the mean of ratios is biased.

    Args:
        above: ``(seeds,)``, positive.
        below: ``(seeds,)``, positive, of the same seeds.
        level: the confidence level.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    seeds, whole = len(above), np.log(above.mean() / below.mean())
    if seeds == 1:
        return float(np.exp(whole)), (math.nan, math.nan)
    without = np.log((above.sum() - above) / (below.sum() - below))
    mean, half = mean_interval(seeds * whole - (seeds - 1) * without, level=level)
    return float(np.exp(whole)), (float(np.exp(mean - half)), float(np.exp(mean + half)))


def slopes(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Slope of log y over log x of each seed, by least squares; NaN where a value is not positive and finite.

    Args:
        x: ``(points,)``, or ``(points, seeds)``.
        y: ``(points, seeds)``.
    """
    y = np.asarray(y, float)
    x = np.broadcast_to(np.asarray(x, float).reshape(len(y), -1), y.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_x, log_y = np.log(x), np.log(y)
        away = log_x - log_x.mean(0)
        found = (away * log_y).sum(0) / (away**2).sum(0)
    return np.where(np.isfinite(found), found, np.nan)


def markdown_table(checked: Mapping[str, Sequence[Checked]]) -> str:
    """All claims, grouped by paper, as Markdown.

    Args:
        checked: script's path -> its claims.
    """
    rows = [(claim, script) for script, claims in checked.items() for claim in claims]
    lines = [
        "# Claims",
        "",
        "<!-- Generated by `decentral figures`. Do not edit. -->",
        "",
        "What the papers say, or what was measured before, and what this package measures. `decentral figures` writes this "
        "page; each row is computed by the script it names. Claims that fail stay.",
        "",
        _counts(claim for claim, _ in rows),
        "",
        "Tiers: " + "; ".join(f"*{name}*: {meaning}" for name, meaning in TIERS.items()) + ".",
        "",
        "Tags: " + "; ".join(f"*{name}*: {meaning}" for name, meaning in TAGS.items()) + ".",
        "",
        "Brackets: 95 % intervals over seeds. A claim is undecided where its interval lies across an edge of the accepted "
        "range, or for the reason given.",
    ]
    for paper in dict.fromkeys(sorted(claim.claim.paper for claim, _ in rows)):
        lines += [
            "",
            f"## {paper}",
            "",
            "| id | claim | tier | tag | source | measured | accepted | verdict | script |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        own = [row for row in rows if row[0].claim.paper == paper]
        for checked_claim, script in sorted(own, key=lambda row: _natural(row[0].claim.id)):
            claim = checked_claim.claim
            verdict = f"**{checked_claim.words}**"
            extra = [words for words in (checked_claim.reason, checked_claim.note) if words]
            verdict += f" ({'; '.join(extra)})" if extra else ""
            name = script.rsplit("/", 1)[-1]
            cells = [
                claim.id, claim.statement, claim.tier, claim.tag, claim.source, checked_claim.measured_words,
                range_words(claim.accepted), verdict, f"[{name}](../{script})",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _counts(claims: Iterable[Checked]) -> str:
    words = [claim.words for claim in claims]
    return f"{len(words)} claims: " + ", ".join(
        f"{words.count(word)} {word}" for word in (*VERDICTS, *_SHOWN.values()) if word in words
    ) + "."  # fmt: skip


def _natural(text: str) -> tuple[str, int, str]:
    """B2 before B10."""
    letters = text.rstrip("0123456789")
    return letters, int(text[len(letters) :] or 0), text
