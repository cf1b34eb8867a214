"""Measures loading: `python bench_load.py FOLDER` writes a checkpoint of random weights there and loads it.

The default is the real model's size with 4-bit experts, 52 GB, cut to as many layers as the disk holds. The page cache
is dropped before every read. Printed are the disk's own speed, the speed from disk to a model in place, the peak host
and GPU memory, and with `--edit` the seconds until the engine is ready and one whole edit. `--tiny` does the same in a
second on any machine. Not included: starting Python, and the service around the engine.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from PIL import Image
from torch import Tensor

from hunyuan.checkpoint.folder import INDEX_FILE, read_config
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.load import CPU_READERS, GPU_READERS, PIECE_BYTES, load_model
from hunyuan.checkpoint.quantize import plan_shards
from hunyuan.checkpoint.safetensors_file import ShardWriter
from hunyuan.checkpoint.tensor_table import TensorSpec, expected_tensors
from hunyuan.checkpoint.tiny_config import TinyShape, model_config
from hunyuan.checkpoint.tiny_tokenizer import build_tokenizer
from hunyuan.engines.native import NativeEngine, choose_impl, read_small_files
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import QUANT_METHOD, QUANT_VERSION, CheckpointConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.requests import EditRequest
from hunyuan.settings import Settings
from scripts.support.full_size import write_small_files

GIB = 2**30
_MARKER = "bench_load.txt"  # says that the folder is ours to delete
_BLOCK = 1 << 24  # random values made once and written in turns
_CHUNK = 8 << 20  # bytes of one read when the disk itself is measured
_READERS = 8
_SAMPLE = 16 * 10**9  # bytes that are enough to know the disk
_DTYPES = {"plain": torch.bfloat16, "router": torch.float32, "scale": torch.float32, "fp8": torch.float8_e4m3fn}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write a random checkpoint and measure how fast it loads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="made if absent; a checkpoint that an earlier run left is used again")
    parser.add_argument("--layers", type=int, default=0, help="layers to write; 0: 32, or what the disk holds")
    parser.add_argument("--experts", choices=("mxfp4", "fp8", "bf16"), default="mxfp4", help="how they are stored")
    parser.add_argument("--dense", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--load-as", choices=("mxfp4", "fp8"), help="quantize the experts of a bf16 folder on the way")
    parser.add_argument("--margin-gib", type=float, default=4.0, help="disk space to leave free")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--edit", action="store_true", help="make the model ready, and one edit with it")
    parser.add_argument("--size", default="1024x1024", help="of the edit's source and output, WIDTHxHEIGHT")
    parser.add_argument("--tokens", type=int, default=100, help="the edit may decode")
    parser.add_argument("--steps", type=int, default=28, help="of the edit")
    parser.add_argument("--runs", type=int, default=1, help="how often to load")
    parser.add_argument("--tiny", action="store_true", help="a model of a few megabytes")
    parser.add_argument("--keep", action="store_true", help="leave the folder for another run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    try:
        if not (args.folder / "config.json").is_file():
            write_random_checkpoint(args.folder, args)
        print(f"disk alone: {measure_disk(args.folder)}")
        for _ in range(args.runs):
            text, model, seconds = measure_load(args.folder, device, args.load_as)
            print(text, flush=True)
            if args.edit:
                print(measure_edit(model, args, device, seconds))
            del model
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if not args.keep and (args.folder / _MARKER).is_file():
            shutil.rmtree(args.folder)
    return 0


# --- writing


def raw_config(args: argparse.Namespace, layers: int) -> dict[str, Any]:
    if not args.tiny:
        return full_size_config(layers, args.experts, args.dense)
    raw = model_config(TinyShape(layers=layers), build_tokenizer())
    if (args.experts, args.dense) == ("bf16", "bf16"):
        return raw
    section = {"quant_method": QUANT_METHOD, "version": QUANT_VERSION, "experts": args.experts, "dense": args.dense}
    return raw | {"quantization_config": section}


def layers_that_fit(args: argparse.Namespace) -> int:
    """Raises `CheckpointError` when not even one layer does."""
    args.folder.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(args.folder).free - args.margin_gib * GIB
    one, two = (_nbytes(CheckpointConfig.from_dict(raw_config(args, n))) for n in (1, 2))
    fit = 1 + int((room - one) // (two - one))
    if fit < max(1, args.layers):
        raise CheckpointError(f"the disk holds {max(0, fit)} layers beside {args.margin_gib} GiB to leave free")
    return args.layers or min(fit, 2 if args.tiny else 32)


def write_random_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """Raises `CheckpointError`: the folder holds something else, or the disk is too small."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise CheckpointError(f"{folder.name} is not empty; choose another folder")
    layers = layers_that_fit(args)
    (folder / _MARKER).write_text("random weights; scripts/benchmarks/bench_load.py deletes this folder\n")
    raw = raw_config(args, layers)
    config, started = CheckpointConfig.from_dict(raw), time.monotonic()
    plan = plan_shards(config)
    blocks = _random_blocks(1 << 16 if args.tiny else _BLOCK)
    for number, (name, specs) in enumerate(plan.items()):
        writer = ShardWriter(folder / name, {spec.key: (_dtype(spec), spec.shape) for spec in specs})
        for spec in specs:
            for first, values in _values(spec, blocks[spec.kind], number):
                writer.write(spec.key, values, first)
        writer.finish()
    index = {"weight_map": {spec.key: name for name, specs in plan.items() for spec in specs}}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    write_small_files(folder, raw)
    size, seconds = _nbytes(config), time.monotonic() - started
    print(f"wrote {size / 1e9:.3f} GB, {layers} layers in {len(plan)} files, {seconds:.1f} s")


def _random_blocks(size: int) -> dict[str, Tensor]:
    """Valid values of each kind."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, generator=generator)
    codes = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    codes.masked_fill_((codes & 0xF) == 8, 0).masked_fill_((codes >> 4) == 8, 0)  # there is no minus zero
    return {
        "plain": (noise / 64).bfloat16(),
        "router": noise / 64,
        "scale": noise.abs() / 4096 + 1e-4,
        "fp8": (noise * 64).clamp(-448, 448).to(torch.float8_e4m3fn),
        "mxfp4": codes,
        "mxfp4_scale": torch.randint(118, 121, (size,), dtype=torch.uint8, generator=generator),
    }


def _values(spec: TensorSpec, block: Tensor, number: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces of one tensor; each begins elsewhere in the block, so that no two files are alike."""
    first, start = 0, (number * 1_000_003 + len(spec.key) * 4099) % (len(block) // 2)
    while first < spec.numel:
        values = block[start : start + spec.numel - first]
        yield first, values
        first += len(values)
        start = (start + 7919) % (len(block) // 2)


def _dtype(spec: TensorSpec) -> torch.dtype:
    return _DTYPES.get(spec.kind, torch.uint8)


def _nbytes(config: CheckpointConfig) -> int:
    return sum(spec.nbytes for spec in expected_tensors(config).values())


# --- measuring


def drop_cache(folder: Path) -> None:
    """Of the folder's files; of everything where that is allowed."""
    os.sync()
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")


def measure_disk(folder: Path) -> str:
    """Reads the weight files with large reads side by side, past the page cache where the file system can."""
    drop_cache(folder)
    paths = sorted(folder.glob("*.safetensors"))
    pieces = [(path, at) for path in paths for at in range(0, path.stat().st_size, _CHUNK)][: _SAMPLE // _CHUNK]
    direct = _reads_directly(paths[0])
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    handles = {path: os.open(path, flags) for path in paths}
    started = time.monotonic()
    with ThreadPoolExecutor(_READERS) as pool:
        buffers = [mmap.mmap(-1, _CHUNK) for _ in range(_READERS)]  # aligned to pages, as direct reads want it

        def read(part: int) -> int:
            return sum(os.preadv(handles[path], [buffers[part]], at) for path, at in pieces[part::_READERS])

        size = sum(pool.map(read, range(_READERS)))
    seconds = time.monotonic() - started
    for handle in handles.values():
        os.close(handle)
    kind = "direct reads" if direct else "reads after dropping the cache"
    return f"{size / 1e9:.3f} GB in {seconds:.2f} s, {size / 1e9 / seconds:.2f} GB/s ({kind}, {_READERS} at a time)"


def _reads_directly(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        os.preadv(handle, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def measure_load(folder: Path, device: torch.device, load_as: str | None) -> tuple[str, HunyuanImage3, float]:
    """What was measured, the model, and the seconds that it took to read."""
    drop_cache(folder)
    config = read_config(folder)
    if load_as:
        config = config.with_formats(load_as, config.dense_format)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the driver's own start is not the loader's
        torch.cuda.reset_peak_memory_stats(device)
    before = _host_memory(reset=True)
    started = time.monotonic()
    model = load_model(folder, config, device, torch.bfloat16)
    _synchronize(device)
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    lines = [f"loaded: {size / 1e9:.3f} GB in {seconds:.2f} s, {size / 1e9 / seconds:.2f} GB/s"]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    lines.append(
        f"host memory: peak {_host_memory() / GIB:.2f} GiB resident, {before / GIB:.2f} before; pinned staging, "
        f"where it is not counted in that: {staging_bytes(config, device) / GIB:.2f} GiB"
    )
    if device.type == "cuda":
        lines.append(f"GPU memory: peak {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB")
    lines.append(f"weights in place: {weights / 1e9:.4f} GB on {device.type}")
    return "\n".join(lines), model, seconds


def staging_bytes(config: CheckpointConfig, device: torch.device) -> int:
    """The most that all staging buffers together take while this config is loaded, quantized on the way or not."""
    unquantized = expected_tensors(config.with_formats("bf16", "bf16")).values()
    largest = max((spec.numel for spec in unquantized if spec.slot is not None), default=0)
    readers = GPU_READERS if device.type == "cuda" else CPU_READERS
    return readers * max(PIECE_BYTES, 2 * largest)


def measure_edit(model: HunyuanImage3, args: argparse.Namespace, device: torch.device, reading: float) -> str:
    """What `NativeEngine.load` does after the weights are read, and one edit of one source picture."""
    started = time.monotonic()
    settings = Settings(model_id=args.folder, device=device.type)
    config = model.config
    assert isinstance(config, CheckpointConfig)  # the loader built it from a folder's
    impl = choose_impl(config, device, model.dtype, settings.moe_impl)
    engine = NativeEngine.assemble(model, read_small_files(args.folder, config), impl, settings)
    _synchronize(device)
    seconds = time.monotonic() - started
    lines = [f"ready {seconds:.1f} s after that: experts {impl}, kernels, tactics, decode graph"]
    size, whole = sum(path.stat().st_size for path in args.folder.glob("*.safetensors")) / 1e9, reading + seconds
    lines.append(f"disk to ready: {size:.3f} GB in {whole:.2f} s, {size / whole:.2f} GB/s")
    width, height = (int(side) for side in args.size.split("x"))
    picture = Image.effect_noise((width, height), 60).convert("RGB")
    request = EditRequest("Make it red", images=[picture], resolution=args.size, max_new_tokens=args.tokens)
    result = engine.run(request, seed=1, steps=args.steps, on_progress=None, cancel=None)
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings.items())
    lines.append(f"the first edit, {args.size}, {result.tokens} tokens, {args.steps} steps: {stages} s")
    if device.type == "cuda":
        peak, held = torch.cuda.max_memory_allocated(device) / GIB, torch.cuda.max_memory_reserved(device) / GIB
        lines.append(f"GPU memory with that edit: peak {peak:.1f} GiB allocated, {held:.1f} GiB reserved")
    return "\n".join(lines)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _host_memory(reset: bool = False) -> int:
    """The process's peak resident memory in bytes; `reset` lets the peak start again from what is held now."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
