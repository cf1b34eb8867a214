"""What the service needs to know of its GPUs: memory in bytes, and which failures a process survives.

Works without torch and without a GPU: torch is never imported here, only looked up where an engine has imported it.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

# A kernel that fails this way leaves the CUDA context unusable for the rest of the process.
_LOST = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "launch timed out",
    "uncorrectable ecc",
)
_NO_ROOM = ("out of memory", "alloc_failed")


def memory_used() -> dict[int, int]:
    """Bytes of tensors on each GPU that this process uses, by its number; empty without one."""
    return {gpu: int(torch.cuda.memory_allocated(gpu)) for torch, gpu in _in_use()}


def forget_peak() -> None:
    for torch, gpu in _in_use():
        torch.cuda.reset_peak_memory_stats(gpu)


def memory_peak() -> dict[int, int]:
    """Most bytes of tensors since `forget_peak`, as `memory_used`."""
    return {gpu: int(torch.cuda.max_memory_allocated(gpu)) for torch, gpu in _in_use()}


def is_out_of_memory(error: BaseException) -> bool:
    """True if the failure was a lack of memory, on the GPU or on the host."""
    for link in _chain(error):
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError":
            return True
        if _is_cuda_error(link) and any(words in str(link).lower() for words in _NO_ROOM):
            return True
    return False


def is_lost(error: BaseException) -> bool:
    """True if the failure leaves this process without a working GPU."""
    faults = [str(link).lower() for link in _chain(error) if _is_cuda_error(link)]
    if any(words in text for text in faults for words in _LOST):
        return True
    return bool(faults) and not is_out_of_memory(error) and not _answers()


def release(error: BaseException) -> None:
    """Gives back what a failed edit still holds: its frames' variables, then the allocator's spare blocks."""
    for link in _chain(error):
        traceback.clear_frames(link.__traceback__)
    gc.collect()
    torch = _torch_on_cuda()
    if torch is not None:
        with suppress(RuntimeError):  # a lost GPU has nothing to give back any more
            torch.cuda.empty_cache()


def _answers() -> bool:
    """A CUDA error that was not named above is fatal exactly if the next call fails as well, on any of the GPUs."""
    try:
        for torch, gpu in _in_use():
            torch.cuda.synchronize(gpu)
    except Exception:
        return False
    return True


def _is_cuda_error(error: BaseException) -> bool:
    """`torch.AcceleratorError` is a RuntimeError; older kernels raise the plain one with the same text."""
    return isinstance(error, RuntimeError) and ("cuda error" in str(error).lower())


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _in_use() -> list[tuple[ModuleType, int]]:
    """The first GPU and those that this process has memory on; asking others for anything would take some there."""
    torch = _torch_on_cuda()
    if torch is None:
        return []
    numbers = range(torch.cuda.device_count())
    return [(torch, gpu) for gpu in numbers if gpu == 0 or torch.cuda.memory_reserved(gpu)]


def _torch_on_cuda() -> ModuleType | None:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
