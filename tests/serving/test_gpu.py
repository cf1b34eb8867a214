"""Which failures a process survives; what is given back after one."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from hunyuan.errors import InferenceFailed, OutOfMemory
from hunyuan.serving import gpu


def caused_by(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


OOM = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 80 GiB")
ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")


@pytest.mark.parametrize(
    ("error", "no_room", "lost"),
    [
        (OOM, True, False),
        (MemoryError(), True, False),
        (caused_by(OutOfMemory("x"), OOM), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True, False),
        (ILLEGAL, False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (caused_by(InferenceFailed("x"), ILLEGAL), False, True),
        (RuntimeError("CUDA error: invalid configuration argument"), False, False),  # the next call works
        (ValueError("CUDA error: device-side assert triggered"), False, False),
        (RuntimeError("shapes do not match"), False, False),
    ],
)
def test_failures_are_told_apart(error: BaseException, no_room: bool, lost: bool) -> None:
    assert (gpu.is_out_of_memory(error), gpu.is_lost(error)) == (no_room, lost)


def test_release_lets_go_of_what_the_failed_call_held() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def fails() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room") as caught:
        fails()
    assert held[0]() is not None
    gpu.release(caught.value)
    assert held[0]() is None


def test_without_a_gpu_there_are_no_figures() -> None:
    if not torch.cuda.is_initialized():
        assert gpu.memory_used() == gpu.memory_peak() == {}
        gpu.forget_peak()


class ThreeCards:
    """What of torch.cuda is asked: three GPUs, of which the first and the last have tensors of this process."""

    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self.waited: list[int] = []
        self.broken: int | None = None
        self.cuda = self

    def device_count(self) -> int:
        return 3

    def memory_reserved(self, card: int) -> int:
        return (0, 0, 50)[card]

    def memory_allocated(self, card: int) -> int:
        return (10, 0, 30)[card]

    def max_memory_allocated(self, card: int) -> int:
        return (20, 0, 40)[card]

    def reset_peak_memory_stats(self, card: int) -> None:
        self.forgotten.append(card)

    def synchronize(self, card: int) -> None:
        self.waited.append(card)
        if card == self.broken:
            raise RuntimeError("CUDA error: unknown error")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> ThreeCards:
    there = ThreeCards()
    monkeypatch.setattr(gpu, "_torch_on_cuda", lambda: there)
    return there


def test_each_gpu_that_is_used_has_its_figures(cards: ThreeCards) -> None:
    gpu.forget_peak()
    assert cards.forgotten == [0, 2]
    assert gpu.memory_used() == {0: 10, 2: 30}
    assert gpu.memory_peak() == {0: 20, 2: 40}


@pytest.mark.parametrize("broken", [None, 0, 2])
def test_any_gpu_that_does_not_answer_is_a_lost_one(cards: ThreeCards, broken: int | None) -> None:
    cards.broken = broken
    assert gpu.is_lost(RuntimeError("CUDA error: unknown error")) == (broken is not None)
    assert cards.waited == ([0] if broken == 0 else [0, 2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none")
class TestOnACard:
    def test_running_out_of_memory_is_survived(self) -> None:
        gc.collect()  # what earlier tests left, so that only this one's memory comes and goes
        before = torch.empty(1_000_000, dtype=torch.uint8, device="cuda")
        gpu.forget_peak()
        used = gpu.memory_used()[0]
        assert used >= before.numel()
        with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
            self._too_much()
        assert gpu.is_out_of_memory(caught.value)
        assert not gpu.is_lost(caught.value)
        gpu.release(caught.value)
        assert gpu.memory_used()[0] == used
        assert gpu.memory_peak()[0] >= used + 50_000_000
        assert int(before.sum()) >= 0

    @staticmethod
    def _too_much() -> None:
        small = torch.empty(50_000_000, dtype=torch.uint8, device="cuda")
        torch.empty(1 << 50, dtype=torch.uint8, device=small.device)

    def test_a_device_side_assert_is_not(self) -> None:
        code = (
            "import torch\n"
            "from hunyuan.serving import gpu\n"
            "try:\n"
            "    torch.zeros(3, device='cuda')[torch.tensor([7], device='cuda')].cpu()\n"
            "except RuntimeError as error:\n"
            "    print(gpu.is_lost(error), gpu.is_out_of_memory(error))\n"
            "    gpu.release(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "True False", done.stderr
