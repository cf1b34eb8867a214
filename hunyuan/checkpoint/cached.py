"""Checkpoint folders that can be made again, kept in a cache: made at the first call and reused by later ones.

Several processes may want one at once, one may die while it makes it, and a disk may damage it: a folder appears whole
in one step, and its files are compared with their hashes each time. Knows files; not what is in them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hunyuan.cache_dirs import user_cache_dirs
from hunyuan.errors import CheckpointError

_MANIFEST = "manifest.json"


def cached_folder(name: str, make: Callable[[Path], object], cache_dir: Path | None = None) -> Path:
    """The folder `name` in the cache, filled by `make` where it is not there or not whole.

    Args:
        name: changes with everything that decides what is in it, so that a cache never holds an old kind.
        make: fills the folder that it is given, which is not there yet.
        cache_dir: where to keep it; None: the user's cache folder, or the temporary one where that is not writable.

    Raises:
        CheckpointError: none of these folders can be written.
    """
    failure: OSError | None = None
    for parent in user_cache_dirs() if cache_dir is None else [Path(cache_dir)]:
        try:
            return _cached(parent / name, make)
        except OSError as error:
            failure = error
    advice = "set HUNYUAN_CACHE_DIR to a folder that can be written"
    raise CheckpointError(f"the built-in checkpoint cannot be written: {failure}; {advice}") from failure


def _cached(folder: Path, make: Callable[[Path], object]) -> Path:
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        made = work / "new"
        make(made)
        hashes = {path.name: _hash(path) for path in sorted(made.iterdir())}
        (made / _MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=2) + "\n", encoding="utf-8")
        if folder.exists() and not _is_whole(folder):
            folder.rename(work / "damaged")
        try:
            made.rename(folder)
        except OSError:
            # Somebody else was faster; theirs is as good.
            if not _is_whole(folder):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sha256"]
        return all(_hash(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
