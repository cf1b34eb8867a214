"""scripts/demo/state.py: what is kept comes back, whole, whenever a save was stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import noise

from scripts.demo import state


def test_a_kept_state_comes_back_and_larger_old_ones_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "PART_BYTES", 2000)
    assert state.load(tmp_path, "x") is None
    state.save(tmp_path, "x", {"step": 1, "average": {"w": noise(5000)}})
    assert len(list(tmp_path.glob("x.*.part"))) > 5
    state.save(tmp_path, "x", {"step": 2, "average": {"w": noise(100), "n": torch.arange(3)}})
    kept = state.load(tmp_path, "x")
    assert kept is not None
    assert kept["step"] == 2
    assert torch.equal(kept["average"]["w"], noise(100).half())
    assert torch.equal(kept["average"]["n"], torch.arange(3))


class Stopping:
    """Lets so many of `Path`'s changes of files pass, then stops the process's work as Ctrl-C does."""

    def __init__(self, passing: int, patch: pytest.MonkeyPatch) -> None:
        self.left = passing
        for method in ("open", "write_bytes", "replace", "unlink"):
            patch.setattr(Path, method, self.counted(getattr(Path, method)))

    def counted(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return plain(*arguments, **named)

        return call


def test_a_stop_at_any_moment_leaves_one_whole_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PART_BYTES", 2000)
    values = {1: noise(5000), 2: noise(3000, seed=1)}
    found = []
    for passing in range(100):
        folder = tmp_path / str(passing)
        state.save(folder, "x", {"step": 1, "w": values[1]})
        with monkeypatch.context() as patch:
            Stopping(passing, patch)
            try:
                state.save(folder, "x", {"step": 2, "w": values[2]})
                break
            except KeyboardInterrupt:
                pass
        kept = state.load(folder, "x")
        assert kept is not None
        assert torch.equal(kept["w"], values[kept["step"]].half())
        found.append(kept["step"])
    assert found == sorted(found)
    assert min(found.count(1), found.count(2)) > 3
