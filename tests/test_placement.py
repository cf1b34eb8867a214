"""Which device a setting means; how layers are shared out is tested with the memory plan (test_plan.py)."""

from __future__ import annotations

import pytest
import torch

from hunyuan.errors import SettingsError
from hunyuan.placement import choose_device


@pytest.mark.parametrize(
    ("there", "name", "device"),
    [
        (True, "auto", "cuda"),
        (False, "auto", "cpu"),
        (True, "cpu", "cpu"),
        (False, "cpu", "cpu"),
        (True, "cuda", "cuda"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, there: bool, name: str, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize("setting", ["HUNYUAN_DEVICE", "--device"])
def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=f"{setting}=cuda, but torch finds no CUDA device; use auto or cpu"):
        choose_device("cuda", setting)
