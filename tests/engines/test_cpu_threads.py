"""One thread for a small model on a CPU, and nobody else's number is changed for good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hunyuan.engines.cpu_threads import SMALL_HIDDEN, threads_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _two_threads_that_nobody_chose(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_model_has_one_thread_while_it_computes() -> None:
    with threads_for(SMALL_HIDDEN, CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_the_old_number_comes_back_after_a_failure() -> None:
    with pytest.raises(ValueError, match="an edit failed"), threads_for(64, CPU):
        raise ValueError("an edit failed")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("hidden", "device"), [(SMALL_HIDDEN + 1, CPU), (64, GPU)])
def test_large_models_and_gpus_are_left_alone(hidden: int, device: torch.device) -> None:
    with threads_for(hidden, device):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_the_environment_chooses_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    with threads_for(64, CPU):
        assert torch.get_num_threads() == 2
