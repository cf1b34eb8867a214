"""The two checkpoints that need no download: the demo, which comes packed with the package, and a tiny random one.

Knows how each gets into the cache, what it is called and what there is to say about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hunyuan.checkpoint import packed, tensor_table, tiny, tiny_config, tiny_tokenizer, tiny_weights
from hunyuan.checkpoint.cached import cached_folder
from hunyuan.checkpoint.full_size import FULL_SIZE_FILE
from hunyuan.demo import ABOUT, FOLDER
from hunyuan.settings import Builtin


@dataclass(frozen=True)
class Kind:
    """One of them.

    Attributes:
        name: what answers call it (`X-Model`).
        about: what whoever meets it unasked ought to know.
        sources: the files that decide what is written.
        make: writes the checkpoint into a folder that is not there yet.
    """

    name: str
    about: str
    sources: Callable[[], Iterable[Path]]
    make: Callable[[Path], object]

    def folder(self, cache_dir: Path | None = None) -> Path:
        """The checkpoint in the cache, in the official layout. Raises `CheckpointError`: it cannot be written there."""
        digest = hashlib.sha256()
        for source in self.sources():
            digest.update(source.read_bytes())
        return cached_folder(f"hunyuan-{self.name}-{digest.hexdigest()[:12]}", self.make, cache_dir)


def _demo_files() -> list[Path]:
    return [Path(packed.__file__), *(FOLDER / name for name in (*packed.SMALL_FILES, *packed.PACKED_FILES))]


def _tiny_files() -> list[Path]:
    modules = (tensor_table, tiny_config, tiny_tokenizer, tiny_weights, tiny)
    network = sorted(Path(str(tensor_table.__file__)).parents[1].joinpath("model").glob("*.py"))
    return [FULL_SIZE_FILE, *(Path(str(module.__file__)) for module in modules), *network]


KINDS: dict[Builtin, Kind] = {
    "demo": Kind("demo", ABOUT, _demo_files, lambda out: packed.unpack(FOLDER, out)),
    "tiny": Kind(
        "builtin-tiny-random",
        "the built-in tiny checkpoint of random weights, for tests; its pictures are noise",
        _tiny_files,
        tiny.write_tiny_checkpoint,
    ),
}
