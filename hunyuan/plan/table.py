"""The memory plan as a table for people.

Knows how a `Choice` reads; computes nothing but sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from hunyuan.formats.config import CheckpointConfig
from hunyuan.plan.choice import Choice, describe
from hunyuan.plan.memory import GIB, MOST_EXPERT_TOKENS, GpuNeed, MemoryPlan, Work

_Row = tuple[str, list[str]]  # a label and its cells
_SEPARATOR: _Row = ("", [])


def render(choice: Choice) -> str:
    """Several lines, no newline at the end. Sizes in GiB, one column per GPU and their sum where there are several."""
    plan = choice.plan
    head = f"weights: {choice.weights} ({choice.reason})"
    if plan is None:
        return head
    title = describe(choice.gpus)
    rows = [("GiB", _titles(plan)), *_rows(plan)]
    label_width = max(len(label) for label, _ in rows)
    lines = [head, f"on {title}:" if plan.fits else f"on one GPU that is large enough; there is {title}:"]
    for label, cells in rows:
        lines.append(f"{label:<{label_width}}" + "".join(f"{cell:>10}" for cell in cells) if label else "")
    if choice.option:
        lines += ["", choice.option]
    return "\n".join(line.rstrip() for line in lines)


def _titles(plan: MemoryPlan) -> list[str]:
    many = len(plan.gpus) > 1
    return [f"GPU {i}" for i in range(len(plan.gpus))] + ["all"] if many else [""]


def _rows(plan: MemoryPlan) -> list[_Row]:
    work, config, w = plan.work, plan.config, plan.weights
    outside = (
        (f"lm_head ({config.dense_format})", w.head, False),
        ("token embedding", w.embedding, plan.copies),
        ("autoencoder", w.autoencoder, False),
        ("vision tower and aligner", w.vision, False),
        ("latents to tokens and back", w.image_layers, plan.copies),
    )

    def outer(label: str, size: int, copied: bool) -> _Row:
        return label, _cells([size] + [size * copied] * (len(plan.gpus) - 1))

    def row(label: str, value: Callable[[GpuNeed], int]) -> _Row:
        return label, _cells([value(gpu) for gpu in plan.gpus])

    def begun(gpu: GpuNeed) -> int:
        return gpu.begun

    rows = [
        row(f"experts ({_experts(config)})", lambda g: g.experts),
        row(f"attention, shared MLP ({config.dense_format})", lambda g: g.dense),
        row("router (fp32)", lambda g: g.router),
        *(outer(*part) for part in outside),
        row("weights", lambda g: g.weights),
        _SEPARATOR,
        row(f"keys and values, {_kept_rows(work)} tokens", lambda g: g.kv),
        *([row(f"pictures of texts begun, {work.texts} x {work.text_capacity:,} tokens", begun)] if work.texts else []),
        row(f"experts' workspace, {min(work.pass_tokens, MOST_EXPERT_TOKENS):,} tokens", lambda g: g.workspace),
        row(f"largest stage: {_largest(plan)}", lambda g: g.stage),
        row("margin: CUDA's own, allocator's gaps", lambda g: g.margin),
        row("needed", lambda g: g.needed),
        row("there is", lambda g: g.memory),
        row("left", lambda g: g.left),
    ]
    if len(plan.gpus) > 1:
        rows.append(("layers", [str(n) for n in plan.layer_counts] + [str(sum(plan.layer_counts))]))
    return rows


def _kept_rows(work: Work) -> str:
    texts = f" + {work.texts} x {work.text_capacity:,}" if work.texts else ""
    return f"{work.rows} x {work.capacity:,}{texts}"


def _cells(values: Sequence[int]) -> list[str]:
    cells = [f"{value / GIB:.2f}" for value in values]
    return [*cells, f"{sum(values) / GIB:.2f}"] if len(values) > 1 else cells


def _experts(config: CheckpointConfig) -> str:
    """`mxfp4`, or `20 layers mxfp4, 12 layers fp8`."""
    kinds = Counter(config.expert_formats[i] for i in range(config.num_hidden_layers) if config.is_moe(i))
    if len(kinds) < 2:
        return "".join(kinds) or "none"
    return ", ".join(f"{count} layers {kind}" for kind, count in kinds.items())


def _largest(plan: MemoryPlan) -> str:
    stages = plan.stages
    sizes = {
        f"a pass of {plan.work.pass_tokens:,} tokens": stages.layers,
        "vision tower": stages.vision,
        f"autoencoder at {plan.work.size}": stages.autoencoder,
    }
    largest = max(sizes, key=lambda name: sizes[name])
    # Pictures are the first GPU's business.
    return largest if len(plan.gpus) == 1 else f"{largest}; elsewhere a pass"
