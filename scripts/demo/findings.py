"""What the judge found, one case after the other, and the tables that are made of it. Knows no pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_COLOUR = ("bw", "sepia", "invert", "tint", "vivid", "pale", "warmer", "cooler", "brighter", "darker", "contrast", "flat")
BELOW_CEILING: dict[str, tuple[float, tuple[str, ...]]] = {
    "colour edits": (1.0, _COLOUR),
    "mirror and upside down": (1.0, ("mirror", "upside")),
    "background of clip art": (2.0, ("background",)),
}
"""By how many dB answers may be worse than the autoencoder's copies of the exact edits."""
LEAST_PSNR: dict[str, tuple[float, tuple[str, ...]]] = {"blur": (27.0, ("blur",)), "sharpen": (27.0, ("sharpen",))}
LEAST_RIGHT, LEAST_KEPT = 95, 90


@dataclass
class Finding:
    """One case's result; PSNR in dB against the exact edit, of the answer, of its copy by the autoencoder, of nothing.

    Attributes:
        said: the recaption means the task.
        nearest: no other edit is nearer to the answer than the exact one; for a task that keeps the picture, the
            answer is the source, or nearly as good as the autoencoder's own copy of it.
    """

    prompt: str
    task: str
    said: bool
    nearest: bool
    psnr: float | None
    ceiling: float | None
    unedited: float | None
    recaption: str
    seconds: float = 0.0


def table(findings: Sequence[Finding]) -> str:
    """Markdown: one row per edit, then the sums."""
    rows = ["| edit | cases | said | right | PSNR | copy | unedited |", "|---|---|---|---|---|---|---|"]
    names = sorted({f.task.split()[0].split(":")[0] for f in findings})
    for name in [*names, "all"]:
        group = [f for f in findings if name == "all" or f.task.split()[0].split(":")[0] == name]
        said, right = sum(f.said for f in group), sum(f.nearest for f in group)
        means = " | ".join(mean_of(getattr(f, key) for f in group) for key in ("psnr", "ceiling", "unedited"))
        rows.append(f"| {name} | {len(group)} | {said} | {right} | {means} |")
    wrong = [f"- {f.prompt!r} ({f.task}): {f.recaption!r}" for f in findings if not (f.said and f.nearest)]
    return "\n".join([*rows, "", "Not right:", *wrong])


def mean_of(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f}" if known else ""


def aims(findings: Sequence[Finding]) -> str:
    """Markdown: what is aimed at and what was reached.

    Means are over answers with one edit whose recaption is right.
    """
    known = [f for f in findings if f.task != "unknown"]
    unknown = [f for f in findings if f.task == "unknown"]
    said = [f for f in known if f.said and f.nearest]
    kept = [f for f in unknown if f.nearest]
    rows = ["| | aim | reached |", "|---|---|---|"]
    if known:
        share = f"{100 * len(said) / len(known):.0f} % ({len(said)} of {len(known)})"
        rows.append(f"| right edit, said and nearest | {LEAST_RIGHT} % | {share} |")
    for name, (least, edits) in BELOW_CEILING.items():
        found = _answered(known, edits)
        below = mean_of(None if f.psnr is None or f.ceiling is None else f.ceiling - f.psnr for f in found)
        rows.append(f"| {name}, below the ceiling | {least:.0f} dB | {_named(below)} ({_both(found)}) |")
    for name, (least, edits) in LEAST_PSNR.items():
        rows.append(f"| {name} | {least:.0f} dB | {_both(_answered(known, edits))} |")
    if unknown:
        share = f"{100 * len(kept) / len(unknown):.0f} % ({len(kept)} of {len(unknown)})"
        rows.append(f"| unknown requests that give back the source | {LEAST_KEPT} % | {share} |")
    return "\n".join(rows)


def _answered(findings: Sequence[Finding], edits: Sequence[str]) -> list[Finding]:
    return [f for f in findings if f.said and f.psnr is not None and f.task.split(":")[0] in edits and " " not in f.task]


def _both(findings: Sequence[Finding]) -> str:
    return f"{_named(mean_of(f.psnr for f in findings))} of {mean_of(f.ceiling for f in findings)}"


def _named(mean: str) -> str:
    return f"{mean} dB" if mean else "none"
