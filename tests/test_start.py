"""Starts that cannot succeed end the whole `bentoml serve` with their reason last; a worker ends with its master."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from server_process import ROOT, Server, start
from test_faults import faulty

from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.serving import metric_files
from hunyuan.serving.processes import prepare_master

WITHIN_S = 120  # importing torch on a loaded machine; what must not happen is a start without an end


def ended(server: Server) -> tuple[int, str]:
    """Status and last line of a start that fails, once nothing of it is left."""
    try:
        status = server.process.wait(WITHIN_S)
    finally:
        server.stop()
    left = [p for p in psutil.process_iter(["pid"]) if _group(p.pid) == server.process.pid]
    psutil.wait_procs(left, timeout=10)
    assert not [p for p in left if p.is_running()]
    return status, server.log.read_text().rstrip().splitlines()[-1]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def critical(line: str) -> str:
    record = json.loads(line)
    assert record["level"] == "critical"
    return str(record["message"])


@pytest.mark.server
@pytest.mark.parametrize("image", [{}, {"BENTOML_CONTAINERIZED": "true"}], ids=["bare", "image"])
def test_a_bad_checkpoint_ends_the_whole_process_with_its_reason(tmp_path: Path, image: dict[str, str]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint")
    (folder / "system_prompt.py").unlink()
    status, last = ended(start(tmp_path, MODEL_ID=str(folder), **image))
    assert status == 1
    assert critical(last).startswith("cannot serve: system_prompt.py is missing in the checkpoint folder")


@pytest.mark.server
def test_a_part_that_cannot_be_started_ends_the_whole_process(tmp_path: Path) -> None:
    target, folder = "failing_start_service:HunyuanImage", Path(__file__).parent / "faulty"
    status, last = ended(start(tmp_path, target, folder, MODEL_ID="tiny"))
    assert status == 1
    assert critical(last) == "cannot serve: RuntimeError: this part cannot be started"


@pytest.mark.server
def test_a_home_that_is_full_ends_the_whole_process(tmp_path: Path) -> None:
    """No file may grow: to whoever writes one the same as a full disk."""
    server = start(tmp_path, MODEL_ID="tiny")
    psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_FSIZE, (metric_files.ROOM // 2, metric_files.ROOM // 2))
    status, last = ended(server)
    assert status == 1
    assert "BENTOML_HOME), cannot be written to: File too large" in critical(last)


@pytest.mark.server
@pytest.mark.parametrize("workers", ["2", "cpu_count"])
def test_two_workers_are_refused(tmp_path: Path, workers: str) -> None:
    options = f"services.HunyuanImage.workers={workers}"
    status, last = ended(start(tmp_path, MODEL_ID="tiny", BENTOML_CONFIG_OPTIONS=options))
    assert status == 1
    assert last.startswith(f"cannot serve: workers={workers}, and each would load the model; only 1 is possible")


@pytest.mark.server
def test_a_worker_ends_with_a_master_that_is_killed(tmp_path: Path) -> None:
    with faulty(tmp_path) as server:
        workers = psutil.Process(server.process.pid).children(recursive=True)
        assert workers
        os.kill(server.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []


def test_one_worker_is_prepared_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_MASTER_PID", "before")
    before = signal.getsignal(signal.SIGUSR1)
    try:
        prepare_master(1)
        assert os.environ["BENTO_MASTER_PID"] == str(os.getpid())
        assert signal.getsignal(signal.SIGUSR1) != before
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- the metrics' files


def test_the_metrics_files_have_all_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metric_files.VARIABLE, str(tmp_path))
    metric_files.reserve()
    made = list(tmp_path.iterdir())
    assert {path.name for path in made} == {f"{kind}_{os.getpid()}.db" for kind in metric_files.KINDS}
    assert all(path.stat().st_blocks * 512 >= metric_files.ROOM for path in made)


def test_the_client_takes_these_files_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    monkeypatch.setenv(metric_files.VARIABLE, str(tmp_path))
    metric_files.reserve()
    path = tmp_path / f"counter_{os.getpid()}.db"
    figures = MmapedDict(str(path))
    figures.write_value("key", 3.0, 0.0)
    figures.close()
    assert [entry[:2] for entry in MmapedDict.read_all_values_from_file(str(path))] == [("key", 3.0)]
    assert path.stat().st_size == metric_files.ROOM


def test_a_folder_without_room_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(metric_files.VARIABLE, str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(metric_files.NoRoomForMetrics, match=rf"{tmp_path}.*cannot be written to: No space left"):
        metric_files.reserve()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metric_files.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(metric_files.NoRoomForMetrics, match=r"none.*No such file or directory"):
        metric_files.reserve()


def test_without_shared_figures_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metric_files.VARIABLE, raising=False)
    metric_files.reserve()


@pytest.mark.slow
def test_the_master_does_not_import_the_model() -> None:
    """Each process would hold 500 MB for it, and the worker imports it on the editor's own thread."""
    code = "import service, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.stdout.decode().strip(), done.returncode) == ("[]", 0), done.stderr.decode()
