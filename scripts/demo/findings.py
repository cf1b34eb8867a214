"""What the judge found, one case after the other, and the tables that are made of it. Knows no pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hunyuan.compare.report import markdown

_COLOUR = (
    *("bw", "sepia", "invert", "tint", "vivid", "pale", "warmer", "cooler"),
    *("brighter", "darker", "contrast", "flat"),
)
BELOW_CEILING: dict[str, tuple[float, tuple[str, ...]]] = {
    "colour edits": (1.0, _COLOUR),
    "mirror and upside down": (1.0, ("mirror", "upside")),
    "background of clip art": (2.0, ("background",)),
}
"""By how many dB answers may be worse than the autoencoder's copies of the exact edits."""
LEAST_PSNR: dict[str, tuple[float, tuple[str, ...]]] = {"blur": (27.0, ("blur",)), "sharpen": (27.0, ("sharpen",))}
"""To the exact edit, in dB."""
LEAST_RIGHT, LEAST_KEPT = 95, 90  # percent: of known requests, of unknown ones


@dataclass
class Finding:
    """One case's result.

    Attributes:
        task: `unknown`, `beside` and the like, or its edits with their colours (`tint:red mirror`).
        said: the recaption means the task.
        nearest: no other edit is nearer to the answer than the exact one; for a task that keeps the picture, the
            answer is the source, or nearly as good as the autoencoder's own copy of it.
        psnr, ceiling, unedited: against the exact edit, in dB: the answer, the exact edit through the autoencoder and
            back, and the source as it is. None where there is nothing to compare.
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

    @property
    def edit(self) -> str:
        """The first edit's name, without its colour."""
        return self.task.split()[0].split(":")[0]


def table(findings: Sequence[Finding]) -> str:
    """Markdown: one row per edit, then the sums."""
    rows = [["edit", "cases", "said", "right", "PSNR, dB", "ceiling", "unedited"]]
    for name in [*sorted({f.edit for f in findings}), "all"]:
        group = [f for f in findings if name in ("all", f.edit)]
        counts = (len(group), sum(f.said for f in group), sum(f.nearest for f in group))
        means = (mean_of(getattr(f, key) for f in group) for key in ("psnr", "ceiling", "unedited"))
        rows.append([name, *map(str, counts), *means])
    wrong = [f"- {f.prompt!r} ({f.task}): {f.recaption!r}" for f in findings if not (f.said and f.nearest)]
    return "\n".join([*markdown(rows), "", "Every wording that went wrong, and what the model said:", "", *wrong])


def mean_of(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f}" if known else ""


def aims(findings: Sequence[Finding]) -> str:
    """Markdown: what is aimed at and what was reached.

    Means are over answers with one edit whose recaption is right.
    """
    known = [f for f in findings if f.task != "unknown"]
    unknown = [f for f in findings if f.task == "unknown"]
    right = _share([f.said and f.nearest for f in known])
    rows = [["", "aim", "reached"], ["right edit, said and nearest", f"{LEAST_RIGHT} %", right]]
    for name, (least, edits) in BELOW_CEILING.items():
        found = _answered(known, edits)
        below = mean_of(f.ceiling - f.psnr for f in found if f.ceiling is not None and f.psnr is not None)
        reached = f"{below} dB ({_both(found)})" if found else "none"
        rows.append([f"{name}, below the ceiling", f"{least:.0f} dB", reached])
    for name, (least, edits) in LEAST_PSNR.items():
        rows.append([name, f"{least:.0f} dB", _both(_answered(known, edits))])
    kept = _share([f.nearest for f in unknown])
    rows.append(["unknown requests that give back the source", f"{LEAST_KEPT} %", kept])
    return "\n".join(markdown(rows))


def _answered(findings: Sequence[Finding], edits: Sequence[str]) -> list[Finding]:
    """Those of one of these edits and no second one, rightly said."""
    single = [f for f in findings if " " not in f.task and f.edit in edits]
    return [f for f in single if f.said and f.psnr is not None]


def _share(right: Sequence[bool]) -> str:
    if not right:
        return "none"
    percent = f"{100 * sum(right) / len(right):.1f}".removesuffix(".0")
    return f"{percent} % ({sum(right)} of {len(right)})"


def _both(findings: Sequence[Finding]) -> str:
    psnr, ceiling = mean_of(f.psnr for f in findings), mean_of(f.ceiling for f in findings)
    return f"{psnr} of {ceiling} dB" if findings else "none"
