"""Reads a checkpoint folder into the network: official, fp8 or MXFP4; merges adapters and quantizes on the way.

Knows where each tensor goes. Several pieces of files are under way at a time, each through a small staging buffer
(pinned where the target is a GPU), so host memory stays bounded by those buffers; experts land in their stacked place
as they arrive. Does not run the network.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hunyuan.adapters import Adapter
from hunyuan.checkpoint.adapters.merge import Adapters
from hunyuan.checkpoint.folder import OpenWeights, checkpoint_name, read_config
from hunyuan.checkpoint.safetensors_file import Entry, ShardReader
from hunyuan.checkpoint.tensor_table import TensorSpec, expected_tensors, meta_model
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.numbers import quantize_fp8, quantize_fp8_rows, quantize_mxfp4
from hunyuan.model.network import HunyuanImage3
from hunyuan.placement import Placement

PIECE_BYTES = 32 << 20
GPU_READERS, CPU_READERS = 8, 2

NOT_PAINTING = ("vae.", "vision_", "lm_head.", "model.ln_f.")
"""Parameters that no denoising step reads."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of the tensor `key` and what happens to their values (flat, on the CPU), for `device`."""

    key: str
    shard: ShardReader
    start: int
    size: int
    dtype: torch.dtype
    device: torch.device
    put: Callable[[Tensor], None]


@torch.inference_mode(False)  # of the caller's mode the reading threads know nothing
def load_model(
    folder: Path,
    config: CheckpointConfig,
    device: torch.device | Placement,
    dtype: torch.dtype,
    lora: Sequence[Adapter] = (),
) -> HunyuanImage3:
    """Builds the network on `device`, or over several, and fills it; the router stays fp32.

    Args:
        config: the folder's own, or one with other formats: matrices that the folder
            holds in 16 bits are then quantized as they arrive.
        dtype: of everything that is not quantized; the autoencoder's is `autoencoder_dtype`.
        lora: adapters to add to the weights as they arrive, in fp32, before they are rounded or quantized.

    Raises:
        CheckpointError: naming every key that is missing, unexpected, or of the wrong shape or type; a format that
            the folder's cannot be turned into; a value that cannot be quantized; a file that ends while it is read;
            an adapter that does not fit, or any over a folder that is quantized already.
    """
    stored = _stored_config(folder, config)
    expected_tensors(config)  # for its errors about the target, before anything is read
    with OpenWeights(folder, expected_tensors(stored)) as weights, Adapters(lora, folder) as adapters:
        model = empty_model(config, device, dtype)
        pieces = list(_pieces(weights, dict(model.named_parameters()), adapters))
        # The bar shows on a terminal only; a log file gets the two lines around it.
        log.info(
            "loading %d tensors from %d files of %s", len(weights.specs), len(weights.shards), checkpoint_name(folder)
        )
        if stored.formats != config.formats:
            log.warning("quantizing while loading; `hunyuan quantize` does it once and for all, then loading is fast")
        started = time.monotonic()
        with tqdm(
            total=weights.size, desc="loading weights", unit="B", unit_scale=True, mininterval=1.0, disable=None
        ) as progress:
            _run([piece for piece in pieces if piece.device.type != "meta"], progress)
        seconds = time.monotonic() - started
        log.info("all weights loaded: %.2f GB in %.1f s", weights.size / 1e9, seconds)
    return model


def empty_model(config: CheckpointConfig, device: torch.device | Placement, dtype: torch.dtype) -> HunyuanImage3:
    """The network with uninitialized weights, ready for inference."""
    placement = device if isinstance(device, Placement) else Placement.single(device, config.num_hidden_layers)
    model = meta_model(config)
    for name, parameter in model.named_parameters():
        _make_room(model, name, parameter, placement.device_of(name), dtype)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.wte.weight
    return model.eval().requires_grad_(False)


@torch.inference_mode(False)
def copy_for_painting(model: HunyuanImage3, config: CheckpointConfig, device: torch.device) -> HunyuanImage3:
    """A second copy on `device` of what a denoising step runs; what else there is stays without memory.

    Each tensor goes straight from device to device, as it was loaded: call it before anything rearranges the model.
    """
    copy = meta_model(config)
    for name, parameter in model.named_parameters():
        if not name.startswith(NOT_PAINTING):
            _replace(copy, name, parameter.detach().to(device, copy=True))
    return copy.eval().requires_grad_(False)


@torch.inference_mode(False)
def load_part(
    model: HunyuanImage3,
    weights: OpenWeights,
    adapters: Adapters,
    wanted: Callable[[str], bool],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fills those parameters of a network without memory (`meta_model`) whose names are wanted; see `load_model`."""
    for name, parameter in list(model.named_parameters()):
        if wanted(name):
            _make_room(model, name, parameter, device, dtype)
    model.eval().requires_grad_(False)
    pieces = [
        piece for piece in _pieces(weights, dict(model.named_parameters()), adapters) if piece.device.type != "meta"
    ]
    with tqdm(disable=True) as silent:
        _run(pieces, silent)


def drop_part(model: HunyuanImage3, wanted: Callable[[str], bool]) -> None:
    """Gives back the memory of the parameters whose names are wanted."""
    for name, parameter in list(model.named_parameters()):
        if wanted(name):
            _replace(model, name, torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))


def _make_room(
    model: HunyuanImage3, name: str, parameter: nn.Parameter, device: torch.device, dtype: torch.dtype
) -> None:
    """Replaces a parameter by uninitialized memory of the type that it is to have."""
    own = parameter.dtype != torch.float32 or name.endswith(("mlp.gate.wg.weight", "_scale"))
    wanted = autoencoder_dtype(device, dtype) if name.startswith("vae.") else dtype
    kept = parameter.dtype if own else wanted
    _replace(model, name, torch.empty(parameter.shape, dtype=kept, device=device))


def autoencoder_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What the autoencoder's weights become on `device`, where the other weights are of `dtype`.

    Published folders store them in fp32. bfloat16 would take 3 of the 11 bits that fp16 keeps, so they go from the
    file to what computes with them and nowhere else: fp16 on a GPU that computes in 16 bits, fp32 everywhere else.
    """
    return torch.float16 if device.type == "cuda" and dtype.itemsize == 2 else torch.float32


def _stored_config(folder: Path, config: CheckpointConfig) -> CheckpointConfig:
    """`config` with the formats that the folder is in. Raises `CheckpointError` where one cannot become the other."""
    own = read_config(folder)
    formats = list(zip(own.expert_formats, config.expert_formats, strict=True))
    wrong = {f"experts {a} as {b}" for a, b in formats if a not in ("bf16", b)}
    if own.dense_format not in ("bf16", config.dense_format):
        wrong.add(f"dense layers {own.dense_format} as {config.dense_format}")
    if wrong:
        raise CheckpointError(
            f"{checkpoint_name(folder)} is quantized otherwise and cannot be loaded so: {', '.join(sorted(wrong))}"
        )
    return config.with_formats(*own.formats)


# --- what goes where


def _pieces(weights: OpenWeights, parameters: Mapping[str, nn.Parameter], adapters: Adapters) -> Iterator[Piece]:
    """All reads in the files' order, which suits every disk."""
    for shard in weights.shards.values():
        for key, entry in shard.entries.items():
            yield from _tensor_pieces(shard, entry, weights.specs[key], parameters, adapters)


def _tensor_pieces(
    shard: ShardReader, entry: Entry, spec: TensorSpec, parameters: Mapping[str, nn.Parameter], adapters: Adapters
) -> Iterator[Piece]:
    target = parameters[spec.param].data
    if spec.slot is not None:
        target = target[spec.slot]
    quantized = spec.kind == "plain" and (not target.is_floating_point() or target.dtype.itemsize == 1)
    if not quantized:
        unit, put = 1, partial(_copy, target.view(-1))
    elif spec.slot is None:
        scale = parameters[spec.param + "_scale"].data
        unit, put = entry.shape[-1], partial(_quantize_rows, target, scale)
    else:
        # A matrix of an expert has one scale, or limits between its scales: it comes as a whole.
        scale = parameters[spec.param.removesuffix("_proj") + "_scale"].data[spec.slot]
        unit, put = spec.numel, partial(_quantize_matrix, target, scale)
    if adapters.change(spec.key):
        unit = max(unit, entry.shape[-1])  # whole rows
        put = partial(_merge, put, adapters, spec.key, entry.shape[-1], target.device)
    width = unit * entry.dtype.itemsize
    step = max(width, PIECE_BYTES // width * width)
    for offset in range(0, entry.size, step):
        size = min(step, entry.size - offset)
        place = partial(put, offset // entry.dtype.itemsize)
        yield Piece(spec.key, shard, entry.start + offset, size, entry.dtype, target.device, place)


def _copy(target: Tensor, offset: int, values: Tensor) -> None:
    """`values` into flat `target` from `offset` on, converted on the target's device."""
    part = target[offset : offset + len(values)]
    if values.dtype != part.dtype:
        values = values.to(part.device, non_blocking=True)
    part.copy_(values, non_blocking=True)


def _merge(
    put: Callable[[int, Tensor], None],
    adapters: Adapters,
    key: str,
    columns: int,
    device: torch.device,
    offset: int,
    values: Tensor,
) -> None:
    """`put` for values with the adapters' part added, on the target's device."""
    rows = values.to(device, non_blocking=True).view(-1, columns)
    put(offset, adapters.merged(key, rows, offset // columns).view(-1))


def _quantize_rows(target: Tensor, scale: Tensor, offset: int, values: Tensor) -> None:
    columns = target.shape[-1]
    rows = slice(offset // columns, (offset + len(values)) // columns)
    target[rows], scale[rows] = quantize_fp8_rows(values.to(target.device, non_blocking=True).view(-1, columns))


def _quantize_matrix(target: Tensor, scale: Tensor, _offset: int, values: Tensor) -> None:
    quantize = quantize_mxfp4 if target.dtype == torch.uint8 else quantize_fp8
    matrix, scales = quantize(values.to(target.device, non_blocking=True).view(len(target), -1))
    target.copy_(matrix)
    scale.copy_(scales)


# --- reading


def _run(pieces: list[Piece], progress: tqdm) -> None:
    """Reads all pieces with a few threads. The first failure stops the others and is raised."""
    waiting, lock, stop = iter(pieces), threading.Lock(), threading.Event()
    buffer_size = max((piece.size for piece in pieces), default=0)
    cuda = any(piece.device.type == "cuda" for piece in pieces)

    def work() -> None:
        staging = torch.empty(buffer_size, dtype=torch.uint8, pin_memory=cuda)
        while not stop.is_set():
            with lock:
                piece = next(waiting, None)
            if piece is None:
                return
            buffer = staging[: piece.size]
            piece.shard.read_into(buffer, piece.start)
            try:
                piece.put(buffer.view(piece.dtype))
            except ValueError as problem:  # what cannot be quantized
                raise CheckpointError(f"{piece.key}: {problem}") from problem
            if piece.device.type == "cuda":
                # The buffer may be filled again once its copy is done; other threads read meanwhile.
                torch.cuda.current_stream(piece.device).synchronize()
            with lock:
                progress.update(piece.size)

    readers = min(GPU_READERS if cuda else CPU_READERS, max(1, len(pieces)))
    with ThreadPoolExecutor(readers, "weights") as pool:
        try:
            for future in as_completed([pool.submit(work) for _ in range(readers)]):
                future.result()
        finally:
            stop.set()


def _replace(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
