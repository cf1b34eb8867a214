"""What a comparison found, as tables and as a sheet of pictures.

Knows outcomes; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from PIL import Image

from hunyuan import EditRequest
from hunyuan.compare import picture_metrics as metrics
from hunyuan.compare.weights import Comparison, Outcome
from hunyuan.pictures.reader import load_image


def table(comparisons: Sequence[Comparison]) -> str:
    """Of one candidate: one line per request, then the errors of each step and layer."""
    form = "{:<40} {:>9} {:>8} {:>7} {:>7} {:>9} {:>9} {:>11} {:>8}"
    lines = [
        form.format("request", "size", "PSNR dB", "SSIM", "max/255", "velocity", "last step", "text free", "forced")
    ]
    for c in comparisons:
        lines.append(
            form.format(
                c.prompt[:40],
                "x".join(map(str, c.size)),
                "equal" if c.psnr_db is None else f"{c.psnr_db:.2f}",
                f"{c.ssim:.4f}",
                c.largest_difference,
                f"{fmean(c.velocity_error):.2e}",
                f"{c.velocity_error[-1]:.2e}",
                "-" if c.text_tokens is None else f"{c.text_equal_before_parting}/{c.text_tokens}",
                "-" if c.text_forced_share is None else f"{c.text_forced_share:.4f}",
            )
        )
    lines += ["", "velocity error of each step (mean over requests, largest)"]
    lines += _numbered([c.velocity_error for c in comparisons])
    if any(c.layer_error for c in comparisons):
        lines += ["", "residual stream behind each layer, at the middle step (mean over requests, largest)"]
        lines += _numbered([c.layer_error for c in comparisons])
    return "\n".join(lines)


def _numbered(series: Sequence[Sequence[float]]) -> list[str]:
    lines = []
    for i in range(max(map(len, series))):
        errors = [values[i] for values in series if i < len(values)]
        lines.append(f"{i:>4} {fmean(errors):>10.2e} {max(errors):>10.2e}")
    return lines


HEADINGS = (
    "candidate",
    "full steps",
    "weight error",
    "last layer",
    "velocity",
    "PSNR dB",
    "SSIM",
    "least SSIM",
    "text forced",
    "text free",
)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One row per candidate, means over the requests, as Markdown; and what each layer and each step loses."""
    tables = [markdown([HEADINGS, *map(_row, outcomes)])]
    layers = [[c.layer_error for c in outcome.comparisons] for outcome in outcomes]
    steps = [[c.velocity_error for c in outcome.comparisons] for outcome in outcomes]
    for what, series in (("residual stream behind layer", layers), ("velocity at step", steps)):
        count = max((len(errors) for found in series for errors in found), default=0)
        rows = [[_mean((e[i] for e in found if i < len(e)), ".4f") for found in series] for i in range(count)]
        names = [outcome.name for outcome in outcomes]
        tables.append(markdown([[what, *names], *([str(i), *row] for i, row in enumerate(rows))]))
    return "\n\n".join("\n".join(lines) for lines in tables)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its head."""
    head, *rest = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]


def _row(outcome: Outcome) -> tuple[str, ...]:
    found = outcome.comparisons
    noise = [c.psnr_db for c in found if c.psnr_db is not None]
    texts = [(c.text_equal_before_parting or 0) / c.text_tokens for c in found if c.text_tokens]
    return (
        outcome.name,
        _mean((c.full_steps for c in found), ".3g"),
        "-" if outcome.weight_error is None else f"{outcome.weight_error:.4f}",
        _mean((c.layer_error[-1] for c in found if c.layer_error), ".4f"),
        _mean((fmean(c.velocity_error) for c in found), ".4f"),
        _mean(noise, ".2f") if len(noise) == len(found) else f"{_mean(noise, '.2f')}, {len(found) - len(noise)} equal",
        _mean((c.ssim for c in found), ".4f"),
        f"{min(c.ssim for c in found):.4f}",
        _mean((c.text_forced_share for c in found if c.text_forced_share is not None), ".4f"),
        _mean(texts, ".4f"),
    )


def _mean(values: Iterable[float], form: str) -> str:
    found = list(values)
    return format(fmean(found), form) if found else "-"


def sheet(cases: Sequence[EditRequest], originals: Sequence[Image.Image], outcomes: Sequence[Outcome]) -> Image.Image:
    """A row per request: source, A's picture `originals`, each candidate's; with a single one its difference from A."""
    rows = []
    for i, (case, original) in enumerate(zip(cases, originals, strict=True)):
        source = load_image(case.images[0]) if case.images else None
        row: list[tuple[str, Image.Image | None]] = [(case.prompt, source), ("A", original)]
        for outcome in outcomes:
            found, picture = outcome.comparisons[i], outcome.pictures[i]
            noise = "equal" if found.psnr_db is None else f"{found.psnr_db:.1f} dB"
            row.append((f"{outcome.name}: {noise}, SSIM {found.ssim:.3f}", picture))
            if len(outcomes) == 1:
                apart = metrics.difference(original, picture)
                row.append((f"difference x{metrics.AMPLIFIED}, {noise}", apart))
        rows.append(row)
    return metrics.contact_sheet(rows)
