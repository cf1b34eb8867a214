"""One process at a time quantizes into a folder; a killed one keeps nobody out."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.journal import LOCK_FILE, sole_writer
from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    source, out = write_tiny_checkpoint(tmp_path / "source"), tmp_path / "out"
    command = [sys.executable, "-m", "hunyuan", "quantize", str(source), str(out)]
    with sole_writer(out):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert "error: another process is quantizing into out: wait for it" in done.stderr
        assert [path.name for path in out.iterdir()] == [LOCK_FILE]
    assert not list(out.iterdir())
    (out / LOCK_FILE).touch()  # as a killed process leaves it
    quantize_folder(source, out, QuantizeOptions())
    assert not (out / LOCK_FILE).exists()
    assert set(read_config(out).expert_formats) == {"mxfp4"}


def test_a_lock_whose_file_is_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = fcntl.flock

    def late(handle: int, how: int) -> None:
        (tmp_path / LOCK_FILE).unlink()  # as the process that held it does at its end
        taken(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(CheckpointError, match="another process is quantizing"), sole_writer(tmp_path):
        pytest.fail("two would write")
