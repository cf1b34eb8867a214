"""Which folder jobs are kept in, and that no two processes share one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hunyuan.errors import SettingsError
from hunyuan.serving.jobs.folder import jobs_folder


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path


def test_a_named_folder_is_made_for_its_owner_only(home: Path) -> None:
    folder = jobs_folder(home / "a" / "jobs")
    assert folder is not None
    assert folder.path == home / "a" / "jobs"
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_named_folder_that_another_process_uses_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hunyuan.serving.jobs.folder.WAIT_S", 0.05)
    held = jobs_folder(home / "jobs")
    assert held is not None
    with pytest.raises(SettingsError, match=r"HUNYUAN_JOBS_DIR=.*another process"):
        jobs_folder(home / "jobs")
    held.close()
    held.close()
    assert jobs_folder(home / "jobs") is not None


def test_the_end_of_the_process_before_is_waited_for(home: Path) -> None:
    held = jobs_folder(home / "jobs")
    assert held is not None
    threading.Timer(0.3, held.close).start()
    began = time.monotonic()
    assert jobs_folder(home / "jobs") is not None
    assert time.monotonic() - began >= 0.25


def test_a_lock_ends_with_its_process(home: Path) -> None:
    code = "import sys, os; from pathlib import Path; from hunyuan.serving.jobs.folder import jobs_folder\n"
    code += "folder = jobs_folder(Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(home / "jobs")], check=False)
    assert jobs_folder(home / "jobs") is not None


def test_a_named_folder_that_is_none_is_refused(home: Path) -> None:
    (home / "file").touch()
    with pytest.raises(SettingsError, match=r"HUNYUAN_JOBS_DIR=.*cannot be kept there"):
        jobs_folder(home / "file")


def test_without_a_name_each_server_of_a_user_gets_its_own(home: Path) -> None:
    first, second = jobs_folder(None), jobs_folder(None)
    assert first is not None
    assert second is not None
    own = home / "state" / "hunyuan-image-bento"
    assert [first.path, second.path] == [own / "jobs", own / "jobs-2"]
    first.close()
    again = jobs_folder(None)
    assert again is not None
    assert again.path == own / "jobs"


def test_where_nothing_of_the_users_can_be_written_there_is_none(home: Path) -> None:
    (home / "state").touch()
    (home / "tmp").touch()
    assert jobs_folder(None) is None


def test_the_temporary_folder_is_the_second_choice(home: Path) -> None:
    (home / "state").touch()
    folder = jobs_folder(None)
    assert folder is not None
    assert folder.path == home / "tmp" / "hunyuan-image-bento" / "jobs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that is another user's")
def test_a_folder_that_somebody_else_has_put_there_is_not_trusted(home: Path) -> None:
    (home / "state").touch()
    planted = home / "tmp" / "hunyuan-image-bento"
    planted.mkdir(parents=True)
    os.chown(planted, 12345, 12345)
    assert jobs_folder(None) is None
