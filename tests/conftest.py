"""What every test shares: one thread (tests may run beside a server), no network, the tiny golden checkpoint."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import pytest
import torch

from hunyuan import Editor, Settings
from hunyuan.checkpoint.packed import pack
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.loopback import ask_no_proxy

torch.set_num_threads(1)
ask_no_proxy()  # servers of the tests are on this machine

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden_a"
HEAVY = {"server": 3, "slow": 2, "whole": 1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: where several processes share the tests, none is left with a long one at the end."""
    weights = Counter[Path]()
    for item in items:
        weights[item.path] += sum(weight for mark, weight in HEAVY.items() if item.get_closest_marker(mark))
    items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish() -> None:
    """What was imported and collected stays: millions of objects that each later collection need not visit again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's own HUNYUAN_* and MODEL_ID must not reach a test, nor that it may run in an image."""
    for name in list(os.environ):
        if name.upper().startswith("HUNYUAN_") or name.upper() in ("MODEL_ID", "BENTOML_CONTAINERIZED"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def golden() -> Path:
    """A folder of recorded values with its checkpoint (`GOLDEN/checkpoint`, base size 256, fp32)."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_editor() -> Editor:
    """The golden checkpoint, loaded once, fp32 on the CPU."""
    return Editor.load(Settings(model_id=GOLDEN / "checkpoint", device="cpu", dtype="float32", moe_impl="eager"))


@pytest.fixture(scope="session")
def packed_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as `whole` and packed as `packed`, which takes seconds; for tests that copy or only read it."""
    folder = tmp_path_factory.mktemp("packed_tiny")
    pack(write_tiny_checkpoint(folder / "whole"), folder / "packed")
    return folder
