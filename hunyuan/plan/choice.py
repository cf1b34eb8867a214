"""In which format the weights are to be held: what the settings ask for, what the folder has, what fits the GPUs.

Quality decides: bf16 before fp8 before 4-bit, over as many GPUs as that takes, and the fewest that hold it. Some layers
in fp8 are never chosen unasked: they make a token slower than 4 bits do, for a gain that has not been shown on the
published weights. A format that is asked for by name and fits twice is held by two GPUs, which then share the rows of
guidance. A folder that is quantized already is taken as it is. Knows the settings' words and reasons for people; reads
no files and asks no driver.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hunyuan.checkpoint.layer_choice import LayerErrors, with_fp8_layers, worth_fp8
from hunyuan.errors import SettingsError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.plan.memory import GIB, MemoryPlan, Work, plan_copies, plan_memory
from hunyuan.plan.weights import FORMATS, MIXED, stored_weights

MOST_GPUS = 8
"""What a refusal looks through for something that would fit: the GPUs of one host."""

CONVERT = "hunyuan quantize SRC OUT --weights"


@dataclass(frozen=True)
class Gpu:
    """A GPU's name for people, and its memory in bytes."""

    name: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name} ({self.memory / GIB:.1f} GiB)"


@dataclass(frozen=True)
class Choice:
    """The decision.

    Attributes:
        weights: of the experts: bf16, fp8, 4bit or mixed.
        config: the model's, with the formats that the weights are to have on the device.
        quantize: the folder holds another format, so the loader must convert.
        reason: one sentence for the log.
        gpus: those that are used, none on a CPU.
        plan: None on a CPU.
        option: what else these GPUs could do, a sentence for the table; empty where there is nothing.
    """

    weights: str
    config: CheckpointConfig
    quantize: bool
    reason: str
    gpus: tuple[Gpu, ...] = ()
    plan: MemoryPlan | None = None
    option: str = ""


class DoesNotFit(SettingsError):
    """No format that was allowed fits the GPUs. Its message says what would; `plan` is the smallest that was tried."""

    def __init__(self, message: str, choice: Choice) -> None:
        super().__init__(message)
        self.choice = choice


def choose(
    config: CheckpointConfig,
    weights: str,
    dense: str,
    gpus: Sequence[Gpu],
    *,
    work: Work | None = None,
    itemsize: int = 2,
    errors: Callable[[], Mapping[int, LayerErrors]] | None = None,
) -> Choice:
    """Settles `HUNYUAN_WEIGHTS` and `HUNYUAN_DENSE`.

    Args:
        config: of the folder; its formats say how the weights are stored.
        weights: auto, bf16, fp8, 4bit or mixed.
        dense: bf16 or fp8; a folder that stores fp8 stays fp8.
        gpus: in the order in which they are to be used; none for a CPU, where nothing is planned.
        work: the largest request to make room for; None: the largest that the checkpoint allows.
        itemsize: bytes of the dtype that the model computes in.
        errors: measures an official folder's layers, for mixed alone; None: the first stand for those that gain most.

    Raises:
        SettingsError: the folder cannot be had in the format asked for.
        DoesNotFit: a format could, and is too big.
    """
    stored = stored_weights(config)
    every, work = _targets(config, stored, dense), work or Work.create(config)
    if weights == MIXED and stored == "bf16" and gpus:
        every[MIXED] = _mixed(every["4bit"], gpus, work, itemsize, errors)
    allowed = _allowed(every, stored, weights)
    if not gpus:
        reason, target = "no GPU to fit" if weights == "auto" else f"HUNYUAN_WEIGHTS={weights}", every[allowed[0]]
        return Choice(allowed[0], target, target.formats != config.formats, reason)
    memories, too_big = [gpu.memory for gpu in gpus], list[Choice]()
    for name in allowed:
        plan = plan_memory(target := every[name], memories, work, itemsize)
        if weights != "auto":
            plan = _copies(target, gpus, work, itemsize) or plan
        used = tuple(gpus[: len(plan.gpus)] if plan.fits else gpus)
        reason = _reason(name, weights, stored, too_big, used) if plan.fits else "does not fit"
        choice = Choice(name, target, target.formats != config.formats, reason, used, plan)
        if plan.fits:
            return replace(choice, option=_option(every, gpus, work, itemsize, plan, weights))
        too_big.append(choice)
    raise DoesNotFit(_refusal(too_big, every, gpus, work, itemsize), too_big[-1])


def _targets(config: CheckpointConfig, stored: str, dense: str) -> dict[str, CheckpointConfig]:
    """Every format that this folder can be had in, best first: by what `HUNYUAN_WEIGHTS` says, the config then."""
    dense = "fp8" if "fp8" in (dense, config.dense_format) else "bf16"
    if stored != "bf16":
        return {stored: config.with_formats(config.expert_formats, dense)}
    return {name: config.with_formats(kind, dense) for name, kind in FORMATS.items()}


def _mixed(
    narrow: CheckpointConfig,
    gpus: Sequence[Gpu],
    work: Work,
    itemsize: int,
    errors: Callable[[], Mapping[int, LayerErrors]] | None,
) -> CheckpointConfig:
    """`narrow`, all experts in 4 bits, with as many layers in fp8 as fit, those that gain most."""
    # One GPU that holds them is filled, and a second one is for a copy, as with any format asked for by name.
    memories = [gpu.memory for gpu in gpus]
    if plan_memory(narrow, memories[:1], work, itemsize).fits:
        memories = memories[:1]
    layers = [n for n in range(narrow.num_hidden_layers) if narrow.is_moe(n)]
    ranked = layers if errors is None else worth_fp8(errors())

    def kept(count: int) -> CheckpointConfig:
        return with_fp8_layers(narrow, ranked[:count], narrow.dense_format)

    def too_many(count: int) -> bool:
        return not plan_memory(kept(count), memories, work, itemsize).fits

    return kept(max(0, bisect_left(range(len(ranked) + 1), True, key=too_many) - 1))


def _allowed(every: Iterable[str], stored: str, weights: str) -> list[str]:
    """Those that the setting allows. Raises `SettingsError` when there are none."""
    chosen = [name for name in every if weights in ("auto", name)]
    if chosen:
        return chosen
    if stored == "bf16" and weights == MIXED:
        raise SettingsError(
            f"HUNYUAN_WEIGHTS={MIXED} fills the memory of a GPU, and there is none; a CPU needs a folder converted "
            f"beforehand: {CONVERT} {MIXED}"
        )
    raise SettingsError(
        f"HUNYUAN_WEIGHTS={weights}, but this folder's experts are stored as {stored}; use auto or {stored} with it, "
        f"or take the official folder"
    )


def _reason(chosen: str, asked: str, stored: str, too_big: Sequence[Choice], gpus: Sequence[Gpu]) -> str:
    where = describe(gpus)
    if stored != "bf16":
        reason = f"the folder's experts are stored as {stored}, and fit {where}"
    elif asked == MIXED:
        reason = f"HUNYUAN_WEIGHTS={asked}: 4 bits, and fp8 in as many layers as fit {where}"
    elif asked != "auto":
        reason = f"HUNYUAN_WEIGHTS={asked}, which fits {where}"
    elif too_big:
        sizes = ", ".join(f"{choice.weights} needs {_needed(choice):.1f} GiB" for choice in too_big)
        reason = f"the best that fits {where}: {sizes}"
    else:
        reason = f"unquantized weights fit {where}"
    if chosen not in ("bf16", stored):
        reason += f"; quantized while loading, which {CONVERT} {chosen} does once and for all"
    return reason


def _copies(target: CheckpointConfig, gpus: Sequence[Gpu], work: Work, itemsize: int) -> MemoryPlan | None:
    """A copy on each of the first two GPUs, which must be of one kind: both rows take the same kernels."""
    if len({gpu.name for gpu in gpus[:2]}) > 1:
        return None
    return plan_copies(target, [gpu.memory for gpu in gpus], work, itemsize)


def _option(
    every: Mapping[str, CheckpointConfig],
    gpus: Sequence[Gpu],
    work: Work,
    itemsize: int,
    plan: MemoryPlan,
    weights: str,
) -> str:
    """What a second GPU is for, or would be for; empty where there is none, or nothing else to be had."""
    if len(gpus) < 2:
        return ""
    if plan.copies:
        return "GPU 0 runs the guided row and all else, GPU 1 the unguided row; GPU 1 idles without guidance"
    if work.rows == 1:
        return "one GPU is used: a distilled checkpoint has no unguided row" if len(plan.gpus) == 1 else ""
    fitting = [name for name, target in every.items() if _copies(target, gpus, work, itemsize)]
    if weights == "auto" and fitting:
        return f"HUNYUAN_WEIGHTS={fitting[0]}: a copy on each of two GPUs, which run the two rows of guidance at once"
    return (
        "one GPU is used: GPU 1 is of another kind or too small for a copy"
        if weights != "auto" and len(plan.gpus) == 1
        else ""
    )


def _refusal(
    too_big: Sequence[Choice], every: Mapping[str, CheckpointConfig], gpus: Sequence[Gpu], work: Work, itemsize: int
) -> str:
    """What is needed, what there is, and the fewest GPUs of this kind for each format."""
    first, fitting = gpus[0], []
    for name, target in reversed(list(every.items())):
        plan = plan_memory(target, [first.memory] * MOST_GPUS, work, itemsize)
        if plan.fits and len(plan.gpus) <= len(gpus):
            fitting.append(f"{name} on {'this GPU' if len(gpus) == 1 else 'these GPUs'}")
        elif plan.fits:
            fitting.append(f"{name} on {len(plan.gpus)} x {first.name}")
    needs = ", ".join(f"{choice.weights} needs {_needed(choice):.1f} GiB" for choice in too_big)
    would = ", ".join(fitting) or f"nothing on up to {MOST_GPUS} x {first.name}"
    advice = "" if "bf16" in every else f"; the official folder in another format: {CONVERT} 4bit"
    return f"{needs}; there is {describe(gpus)}; fits: {would}{advice}"


def _needed(choice: Choice) -> float:
    return choice.plan.needed / GIB if choice.plan else 0.0


def describe(gpus: Sequence[Gpu]) -> str:
    """`2 x H100 (79.6 GiB)`; GPUs of several kinds one by one."""
    if len(set(gpus)) == 1:
        return f"{len(gpus)} x {gpus[0]}"
    return ", ".join(str(gpu) for gpu in gpus)
