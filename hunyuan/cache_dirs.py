"""Where files are kept when no setting names a folder. Knows the user's conventions only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

NAME = "hunyuan-image-bento"


def user_cache_dirs() -> list[Path]:
    """For files that can be made again: the user's cache folder, then the temporary one for where that is not writable.

    Makes neither.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(user_cache) / NAME, Path(tempfile.gettempdir()) / NAME]


def user_state_dirs() -> list[Path]:
    """The same for files that should outlive the process but not move to another machine."""
    user_state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return [Path(user_state) / NAME, Path(tempfile.gettempdir()) / NAME]
