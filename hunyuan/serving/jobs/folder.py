"""Where jobs are kept: the folder that a setting names, else one of the user's, for this process alone.

Knows folders and locks. A lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from hunyuan.cache_dirs import user_state_dirs
from hunyuan.errors import SettingsError

NAME = "jobs"
_LOCK = ".lock"
WAIT_S = 10.0  # for a process that was killed: its children end a moment after it
_POLL_S = 0.1
_SERVERS = 16  # of one user on one machine, each of which gets a folder


class LockedFolder:
    """A folder that no other process uses as long as this object lives and `close` was not called."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def jobs_folder(named: Path | None) -> LockedFolder | None:
    """Makes and locks the folder.

    Args:
        named: by the operator; None: `jobs` among the user's own files, `jobs-2` where another server has that, and so
            on. None is returned where the user has no folder that can be written.

    Raises:
        SettingsError: the folder that was named cannot be used.
    """
    if named is not None:
        try:
            return _locked_soon(named)
        except BlockingIOError:
            raise SettingsError(f"HUNYUAN_JOBS_DIR={named}: another process keeps its jobs there") from None
        except OSError as error:
            raise SettingsError(f"HUNYUAN_JOBS_DIR={named}: jobs cannot be kept there ({error.strerror})") from error
    for parent in user_state_dirs():
        for number in range(1, _SERVERS + 1):
            try:
                return _locked(parent / (NAME if number == 1 else f"{NAME}-{number}"), own=True)
            except BlockingIOError:
                continue
            except OSError:
                break
    return None


def _locked_soon(path: Path) -> LockedFolder:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            return _locked(path)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(_POLL_S)


def _locked(path: Path, own: bool = False) -> LockedFolder:
    """`own`: nobody else may have made it, as somebody could in the temporary folder. Raises `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own and any(folder.lstat().st_uid != os.geteuid() for folder in (path.parent, path)):
        raise PermissionError(0, "it is another user's")
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return LockedFolder(path, lock)
