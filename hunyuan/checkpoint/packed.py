"""A small checkpoint folder made smaller for a repository or a wheel, and made whole again.

The weights go into two `.xz` files that hold safetensors, the autoencoder's apart: training the rest again leaves that
file as it is. 3D kernels whose outer slices in time are all zero (an
autoencoder of single frames) keep their middle slice only. Unpacking gives the official layout, value for value. Knows
files and shapes; does not know what the checkpoint can do.
"""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

from safetensors.torch import load, load_file, save
from torch import Tensor

from hunyuan.checkpoint import tiny
from hunyuan.checkpoint.folder import SINGLE_FILE, read_config
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.untrusted import PREFIX
from hunyuan.errors import CheckpointError

PACKED_FILES = ("transformer.safetensors.xz", "autoencoder.safetensors.xz")
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "system_prompt.py")

# Two bytes per value: each of the two has statistics of its own.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 1, "lp": 1, "pb": 1}]


def pack(folder: Path, out: Path) -> None:
    """Writes the packed form of a folder with one weight file."""
    out.mkdir(parents=True, exist_ok=True)
    for name in SMALL_FILES:
        shutil.copyfile(folder / name, out / name)
    weights = {key: _without_zero_slices(value) for key, value in load_file(folder / SINGLE_FILE).items()}
    for name in PACKED_FILES:
        part = {key: value for key, value in weights.items() if _file_of(key) == name}
        raw = save(part, metadata={"format": "pt"})
        (out / name).write_bytes(lzma.compress(raw, format=lzma.FORMAT_XZ, filters=_FILTERS))


def unpack(packed: Path, out: Path) -> None:
    """Makes the official folder `out` of a packed one.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name in SMALL_FILES:
            shutil.copyfile(packed / name, out / name)
        weights = {key: value for name in PACKED_FILES for key, value in _unpacked(packed / name).items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"packed checkpoint: {Path(str(error.filename)).name} is missing") from error
    specs = expected_tensors(read_config(out))
    whole = {key: _with_zero_slices(value, specs[key].shape) for key, value in weights.items() if key in specs}
    tiny.write_weights(out, whole)


def one_tensor(packed: Path, key: str) -> tuple[bytes, str]:
    """The bytes and the type of one tensor, without unpacking what lies behind it."""
    with lzma.open(packed / _file_of(key)) as file:
        length = int.from_bytes(file.read(PREFIX), "little")
        entry = json.loads(file.read(length))[key]
        start, stop = entry["data_offsets"]
        file.seek(PREFIX + length + start)
        return file.read(stop - start), entry["dtype"]


def _file_of(key: str) -> str:
    return PACKED_FILES[key.startswith("vae.")]


def _unpacked(path: Path) -> dict[str, Tensor]:
    raw = path.read_bytes()
    try:
        return load(lzma.decompress(raw))
    except Exception as error:  # safetensors has no public class of error
        raise CheckpointError(f"packed checkpoint: {path.name} is damaged ({type(error).__name__})") from error


def _without_zero_slices(kernel: Tensor) -> Tensor:
    if kernel.dim() != 5 or kernel.shape[2] != 3 or kernel[:, :, ::2].any():
        return kernel
    return kernel[:, :, 1:2].contiguous()


def _with_zero_slices(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    if kernel.dim() != 5 or kernel.shape[2] == shape[2]:
        return kernel
    whole = kernel.new_zeros(shape)
    whole[:, :, 1:2] = kernel
    return whole
