"""What a quantization cost in accuracy: the report stored beside the weights, and its table.

Knows the journal's measurements; relative error is always the norm of the difference over the norm of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from hunyuan.formats.config import CheckpointConfig

REPORT_FILE = "quantization_report.json"
Report = dict[str, Any]
KINDS = ("plain", "calibrated")


def relative_error(measured: Sequence[Sequence[float]]) -> float:
    """Of the whole that the parts `(number, squared error, sum of squares)` make up."""
    square = sum(part[2] for part in measured)
    return sqrt(sum(part[1] for part in measured) / square) if square else 0.0


def layer_error(errors: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Relative error of all experts of a layer together, from what was measured by tensor."""
    return relative_error([part for key, parts in errors.items() if ".experts." in key for part in parts])


def build_report(
    config: CheckpointConfig, job: Mapping[str, Any], done: Mapping[str, Any], mixed: Mapping[str, Any] | None
) -> Report:
    """Per layer and per tensor; of experts also each one's own error, in their order.

    Args:
        done: the journal's entry of each weight file.
        mixed: the journal's record of the choice, for a mixed job.
    """
    # What the layers were chosen by: with calibration the error of the residual stream, else that of the weights.
    measure = "mxfp4_stream_error" if "calibration" in job else "mxfp4_relative_error"
    in_mxfp4 = dict(mixed["mxfp4_errors"]) if mixed else {}
    layers, tensors = [], {}
    for number, name in enumerate(sorted(done)):
        errors = done[name]["errors"]
        if number < config.num_hidden_layers and config.is_moe(number):
            row = {"layer": number, "format": done[name]["format"], "relative_error": layer_error(errors)}
            row |= {"output": done[name]["output"]} if "output" in done[name] else {}
            layers.append(row | ({measure: in_mxfp4[number]} if number in in_mxfp4 else {}))
        for key, parts in errors.items():
            tensors[key] = {"relative_error": relative_error(parts)}
            if ".experts." in key:
                tensors[key]["experts"] = [relative_error([part]) for part in parts]  # type: ignore[assignment]
    size = sum(entry["size"] for entry in done.values())
    return {"job": dict(job), "bytes": size, "dense": config.dense_format, "layers": layers, "tensors": tensors}


def table(report: Report) -> str:
    """One line per layer, then the size."""
    lines = [f"{'layer':>5}  {'experts':<8}{'error':>8}  gate_and_up     down  worst expert"]
    for row in report["layers"]:
        name = f"model.layers.{row['layer']}.mlp.experts"
        both = [report["tensors"][f"{name}.{matrix}_proj"] for matrix in ("gate_and_up", "down")]
        worst = max(error for tensor in both for error in tensor["experts"])
        first, second = (tensor["relative_error"] for tensor in both)
        lines.append(
            f"{row['layer']:>5}  {row['format']:<8}{row['relative_error']:>8.4f}  {first:>11.4f} {second:>8.4f}  "
            f"{worst:>12.4f}"
        )
    lines += _output_lines(report)
    dense = [t["relative_error"] for key, t in report["tensors"].items() if ".experts." not in key]
    if dense:
        lines.append(f"dense layers in fp8: {len(dense)} matrices, error up to {max(dense):.4f}")
    lines.append(f"weights: {report['bytes'] / 1e9:.3f} GB")
    return "\n".join(lines)


def _output_lines(report: Report) -> list[str]:
    """With calibration: how much of the experts' output is lost, and which experts saw too few tokens."""
    rows = [row for row in report["layers"] if "output" in row]
    if not rows:
        return []
    lines = [
        "",
        "output error on held out requests, by layer: of the experts' sum, worst expert, of the residual stream",
    ]
    lines.append(f"{'layer':>5}  {'plain':>8} {'calibrated':>10}  {'worst':>8} {'calibrated':>10}  {'stream':>8}")
    for row in rows:
        found = row["output"]
        worst = [max((e for e in found[f"experts_{kind}"] if e is not None), default=None) for kind in KINDS]
        cells = [found["plain"], found["calibrated"], *worst, found["calibrated_of_stream"]]
        a, b, c, d, e = ("-" if cell is None else f"{cell:.4f}" for cell in cells)
        lines.append(f"{row['layer']:>5}  {a:>8} {b:>10}  {c:>8} {d:>10}  {e:>8}")
    few = [f"layer {row['layer']}: {', '.join(map(str, row['output']['few_tokens']))}" for row in rows]
    few = [text for text, row in zip(few, rows, strict=True) if row["output"]["few_tokens"]]
    return [*lines, f"rounded plainly, too few tokens chose them: {'; '.join(few) or 'none'}", ""]
