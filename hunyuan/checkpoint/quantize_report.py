"""What a quantization cost in accuracy: the report stored beside the weights, and its table.

Knows the journal's measurements; relative error is always the norm of the difference over the norm of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from hunyuan.checkpoint.layer_choice import LayerErrors, choice_table
from hunyuan.formats.config import CheckpointConfig

REPORT_FILE = "quantization_report.json"
Report = dict[str, Any]
KINDS = ("plain", "calibrated", "fp8")
_EXPERTS = ".experts."


def relative_error(measured: Sequence[Sequence[float]]) -> float:
    """Of the whole that the parts `(number, squared error, sum of squares)` make up."""
    square = sum(part[2] for part in measured)
    return sqrt(sum(part[1] for part in measured) / square) if square else 0.0


def layer_error(errors: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Relative error of all experts of a layer together, from what was measured by tensor."""
    return relative_error([part for key, parts in errors.items() if _EXPERTS in key for part in parts])


def layer_errors(entry: Mapping[str, Any]) -> LayerErrors:
    """What a layer with experts loses in 4 bits and in fp8, from the journal's entry of its 4-bit file: of the residual
    stream on held out requests, without calibration of its weights."""
    if output := entry.get("output"):
        return LayerErrors(output["calibrated_of_stream"] or 0.0, output["fp8_of_stream"] or 0.0)
    errors: Mapping[str, Sequence[Sequence[float]]] = entry["errors"]
    as_fp8 = {key: [(part[0], part[3], part[2]) for part in parts] for key, parts in errors.items() if _EXPERTS in key}
    return LayerErrors(layer_error(errors), layer_error(as_fp8))


def build_report(
    config: CheckpointConfig, job: Mapping[str, Any], done: Mapping[str, Any], mixed: Mapping[str, Any] | None
) -> Report:
    """Per layer and per tensor; of experts also each one's own error, in their order.

    Args:
        done: the journal's entry of each weight file.
        mixed: the journal's record of the choice, for a mixed job.
    """
    choice = {layer: {"mxfp4": four, "fp8": eight} for layer, four, eight in mixed["errors"]} if mixed else {}
    layers, tensors = [], {}
    for number, name in enumerate(sorted(done)):
        errors = done[name]["errors"]
        if number < config.num_hidden_layers and config.is_moe(number):
            row = {"layer": number, "format": done[name]["format"], "relative_error": layer_error(errors)}
            row |= {"output": done[name]["output"]} if "output" in done[name] else {}
            layers.append(row | ({"choice": choice[number]} if number in choice else {}))
        for key, parts in errors.items():
            tensors[key] = {"relative_error": relative_error(parts)}
            if _EXPERTS in key:
                tensors[key]["experts"] = [relative_error([part]) for part in parts]  # type: ignore[assignment]
    size = sum(entry["size"] for entry in done.values())
    return {"job": dict(job), "bytes": size, "dense": config.dense_format, "layers": layers, "tensors": tensors}


def table(report: Report, config: CheckpointConfig) -> str:
    """One line per layer, then what was measured on requests, what fp8 layers cost and gain, and the size.

    Args:
        config: of the folder that was written.
    """
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
    lines += _output_lines(report) + _choice_lines(report, config)
    dense = [t["relative_error"] for key, t in report["tensors"].items() if _EXPERTS not in key]
    if dense:
        lines.append(f"dense layers in fp8: {len(dense)} matrices, error up to {max(dense):.4f}")
    lines.append(f"weights: {report['bytes'] / 1e9:.3f} GB")
    return "\n".join(lines)


def _output_lines(report: Report) -> list[str]:
    """With calibration: how much of the experts' output is lost, and which experts saw too few tokens."""
    rows = [row for row in report["layers"] if "output" in row]
    if not rows:
        return []
    kinds = "".join(f" {kind:>10}" for kind in (*KINDS, *KINDS, "calibrated"))
    lines = [
        "",
        "output error on held out requests, by layer: of the experts' sum, worst expert, of the residual stream",
        f"{'layer':>5} {kinds}",
    ]
    for row in rows:
        found = row["output"]
        worst = [max((e for e in found[f"experts_{kind}"] if e is not None), default=None) for kind in KINDS]
        cells = [*(found[kind] for kind in KINDS), *worst, found["calibrated_of_stream"]]
        shown = "".join(f" {'-' if cell is None else format(cell, '.4f'):>10}" for cell in cells)
        lines.append(f"{row['layer']:>5} {shown}")
    few = [f"layer {row['layer']}: {', '.join(map(str, row['output']['few_tokens']))}" for row in rows]
    few = [text for text, row in zip(few, rows, strict=True) if row["output"]["few_tokens"]]
    return [*lines, f"rounded plainly, too few tokens chose them: {'; '.join(few) or 'none'}", ""]


def _choice_lines(report: Report, config: CheckpointConfig) -> list[str]:
    """For a mixed folder: what each layer costs and gains in fp8."""
    errors = {row["layer"]: LayerErrors(**row["choice"]) for row in report["layers"] if "choice" in row}
    if not errors:
        return []
    kept = [row["layer"] for row in report["layers"] if row["format"] == "fp8"]
    measure = "the residual stream, held out requests" if "calibration" in report["job"] else "its weights"
    return ["", choice_table(config, errors, kept, measure), ""]
