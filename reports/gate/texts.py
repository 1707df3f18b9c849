"""A verdict of the gate as text, Markdown for a pull request, JUnit XML, and GitHub annotations."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from results.gate.comparable import REFRESH
from results.gate.compare import Finding, Verdict
from results.gate.quantities import KINDS
from results.gate.texts import pair_text, value_text
from results.gate.tolerances import Tolerances

REFERENCE = "results/reference/gate"
MOST_LINES = 40
WORDS = {
    "exact": "counts, shapes, state bytes (exact)",
    "peak": "tracked peak bytes",
    "loss": "training-loss curve",
    "gradient": "gradient-norm curve",
    "score": "scores, mean over seeds",
}


@dataclass(frozen=True)
class CellFindings:
    """All findings of one cell and seed, the most telling first."""

    first: Finding
    others: int


def grouped(findings: Sequence[Finding]) -> list[CellFindings]:
    """Return one group a cell and seed, in the order of their most telling findings."""
    groups: dict[tuple[str, int | None], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.cell, finding.seed), []).append(finding)
    return [CellFindings(members[0], len(members) - 1) for members in groups.values()]


def summary(verdict: Verdict) -> str:
    """Return the verdict in one sentence."""
    seen = sum(verdict.comparisons.values())
    if verdict.passed:
        return f"gate passed: {verdict.runs} runs, {seen:,} numbers, none outside its band"
    sorts = [finding.sort for finding in verdict.findings]
    parts = [f"{sorts.count(sort)} {_plural(sort, sorts.count(sort))}" for sort in dict.fromkeys(sorts)]
    cells = len({finding.cell for finding in verdict.findings})
    return f"gate FAILED: {', '.join(parts)} in {cells} cells, of {verdict.runs} runs and {seen:,} numbers"


def to_text(verdict: Verdict, tolerances: Tolerances, everything: bool = False) -> str:
    """Return the verdict for a terminal: a line a cell with its most telling number, or a line a finding."""
    lines = [summary(verdict)]
    shown = [CellFindings(each, 0) for each in verdict.findings] if everything else grouped(verdict.findings)
    for group in shown[: None if everything else MOST_LINES]:
        lines += _lines(group)
    if len(shown) > MOST_LINES and not everything:
        lines.append(f"... and {len(shown) - MOST_LINES} more cells: --all shows everything")
    if not verdict.passed:
        lines += ["", bisect_line(verdict), f"if the change is meant: {REFRESH}"]
    lines += ["", *(f"{WORDS[kind]}: {verdict.comparisons.get(kind, 0):,} compared" for kind in KINDS)]
    lines.append(band_line(tolerances))
    lines += [_time_line(verdict)] if verdict.times else []
    return "\n".join(lines) + "\n"


def to_markdown(verdict: Verdict, tolerances: Tolerances) -> str:
    """Return the verdict as a comment on a pull request."""
    lines = [f"### {'✅' if verdict.passed else '❌'} {summary(verdict)}", ""]
    if not verdict.passed:
        lines += [
            "| cell | seed | what | before | after | off by | band | cause |",
            "|---|---|---|---|---|---|---|---|",
        ]
        groups = grouped(verdict.findings)
        for group in groups[:MOST_LINES]:
            one = group.first
            more = f" (+{group.others} more)" if group.others else ""
            seed = "mean" if one.seed is None else str(one.seed)
            cells = [
                one.cell, seed, f"{one.sort}: {one.quantity}{more}", value_text(one.before, one.quantity),
                value_text(one.after, one.quantity), _moved(one), _bound(one), f"{one.cause}: {one.why}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
        if len(groups) > MOST_LINES:
            lines.append(f"\n{len(groups) - MOST_LINES} more cells are left out.")
        lines += ["", f"`{bisect_line(verdict)}`", "", f"If the change is meant: `{REFRESH}`"]
    lines += ["", "<details><summary>What was compared</summary>", ""]
    lines += [f"- {WORDS[kind]}: {verdict.comparisons.get(kind, 0):,}" for kind in KINDS]
    lines += [f"- {band_line(tolerances)}"]
    lines += [f"- {_time_line(verdict)}"] if verdict.times else []
    return "\n".join([*lines, "", "</details>"]) + "\n"


def to_junit(verdict: Verdict, cells: Iterable[str]) -> str:
    """Return JUnit XML with a test case a cell; `cells` are those that were compared."""
    failed: dict[str, list[Finding]] = {}
    for finding in verdict.findings:
        failed.setdefault(finding.cell, []).append(finding)
    names = list(dict.fromkeys([*cells, *failed]))
    suite = ET.Element("testsuite", name="gnlorp gate", tests=str(len(names)), failures=str(len(failed)), errors="0")
    for name in names:
        case = ET.SubElement(suite, "testcase", classname="gnlorp.gate", name=name)
        if name in failed:
            first = failed[name][0]
            failure = ET.SubElement(case, "failure", type=first.sort, message=_sentence(first))
            failure.text = "\n".join(_sentence(each) for each in failed[name])
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def to_annotations(verdict: Verdict) -> str:
    """Return GitHub workflow commands: an error a cell, or one notice that the gate passed."""
    if verdict.passed:
        return f"::notice title=gnlorp gate::{_escaped(summary(verdict))}\n"
    lines = []
    for group in grouped(verdict.findings)[:MOST_LINES]:
        level = "warning" if group.first.cause == "noise" else "error"
        title = f"gnlorp gate, {group.first.sort}".replace(",", "%2C").replace(":", "%3A")
        lines.append(f"::{level} title={title}::{_escaped(_sentence(group.first))}")
    return "\n".join(lines) + "\n"


def bisect_line(verdict: Verdict) -> str:
    """Return how to find the commit: by the one run that shows the most telling number."""
    first = next((each for each in verdict.findings if each.run), None)
    if first is None:
        return "bisect: no single run shows it"
    good = verdict.commit[:12] if verdict.commit else "GOOD"
    # The reference is copied: it lies in the tree, and would be that of each commit that is tried.
    return (
        f"bisect: cp -r {REFERENCE} .nox/gate-reference && git bisect start HEAD {good} && git bisect run "
        f"python -m nox -s regression -- --bisect --reference .nox/gate-reference --only {first.run}"
    )


def band_line(tolerances: Tolerances) -> str:
    """Return where the bands come from."""
    runs = sum(each.runs for each in tolerances.replicates)
    names = ", ".join(dict.fromkeys(each.name for each in tolerances.replicates))
    processors = " and ".join(sorted({each.device_name for each in tolerances.replicates}))
    return (
        f"bands: from {runs} replicate runs ({names}) on {processors}, one false alarm in "
        f"{1 / tolerances.false_alarm:.0f} passes over {tolerances.comparisons:,} banded numbers"
    )


def _lines(group: CellFindings) -> list[str]:
    one = group.first
    seed = "mean over seeds" if one.seed is None else f"seed {one.seed}"
    more = f"  (+{group.others} more here)" if group.others else ""
    before, after = pair_text(one.before, one.after, one.quantity)
    return [
        f"{one.sort.upper():>11}  {one.cell}  {seed}: {one.quantity}{more}",
        f"{'':>13}{before} -> {after}  {_moved(one)}; band {_bound(one)}",
        f"{'':>13}likely {one.cause}: {one.why}",
    ]


def _moved(finding: Finding) -> str:
    if finding.deviation is None:
        before, after = finding.before, finding.after
        if isinstance(before, int) and isinstance(after, int) and not isinstance(before, bool) and before:
            return f"{(after - before) / before:+.2%}"
        return "differs"
    if finding.kind in ("loss", "gradient"):
        return f"off by {finding.deviation:.2g} of it"
    return f"off by {finding.deviation:,.6g}"


def _bound(finding: Finding) -> str:
    return "exact" if not finding.bound else f"±{finding.bound:.2g}"


def _sentence(finding: Finding) -> str:
    seed = "mean over seeds" if finding.seed is None else f"seed {finding.seed}"
    before, after = pair_text(finding.before, finding.after, finding.quantity)
    return (
        f"{finding.cell}, {seed}: {finding.sort}: {finding.quantity} {before} -> {after} ({_moved(finding)}, band "
        f"{_bound(finding)}); likely {finding.cause}: {finding.why}"
    )


def _time_line(verdict: Verdict) -> str:
    parts = [f"{each.suite} {each.method} {_ratio(each.before)} -> {_ratio(each.after)}" for each in verdict.times]
    return "time a step over full training's in the same pass, never judged by default: " + "; ".join(parts)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _plural(word: str, count: int) -> str:
    return word if count == 1 or word in ("vanished", "appeared") else f"{word}s"
