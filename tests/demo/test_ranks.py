"""Ranks of a training: alone nothing is exchanged; two step by the mean of their gradients, at one rate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.demo import train
from scripts.demo.ranks import ALONE, Ranks

ROOT = Path(__file__).resolve().parents[2]
TWO = """
import sys, torch
from torch import nn
from scripts.demo.ranks import Ranks
ranks = Ranks.join(torch.device("cpu"))
first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
first.grad = torch.full((2, 2), 1.0 + 2 * ranks.rank)
if ranks.leads:
    second.grad = torch.ones(3)  # the other rank's batch did not use it
ranks.average([first, second])
assert torch.equal(first.grad, torch.full((2, 2), 2.0)), first.grad
assert torch.equal(second.grad, torch.full((3,), 0.5)), second.grad
assert ranks.agreed(0.25 + ranks.rank) == 0.25
ranks.leave()
open(f"{sys.argv[1]}/rank{ranks.rank}of{ranks.count}", "w").close()
"""


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.join(torch.device("cpu"))
    assert ranks == ALONE
    assert ranks.leads
    parameter = nn.Parameter(torch.ones(2))
    ranks.average([parameter])
    assert parameter.grad is None
    assert ranks.agreed(0.5) == 0.5
    ranks.leave()


@pytest.mark.slow
def test_two_ranks_have_the_mean_of_their_gradients_and_one_rate(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], check=False, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank0of2", "rank1of2"]


def test_pictures_are_drawn_by_other_processes() -> None:
    with pytest.raises(SystemExit, match="--workers: at least 1"):
        train.main(["transformer", "--steps", "1", "--device", "cpu", "--workers", "0"])


def test_the_autoencoder_is_trained_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="on one GPU"):
        train.main(["autoencoder", "--steps", "1", "--device", "cpu"])
