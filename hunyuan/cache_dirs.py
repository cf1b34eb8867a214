"""Where files that can be made again are kept when no setting names a folder. Knows the user's conventions only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

NAME = "hunyuan-image-bento"


def user_cache_dirs() -> list[Path]:
    """The user's cache folder, then the temporary one for where that is not writable. Makes neither."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(user_cache) / NAME, Path(tempfile.gettempdir()) / NAME]
