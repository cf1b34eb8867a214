"""The two checkpoints that need no download: the demo, which comes packed with the package, and a tiny random one.

Knows how each gets into the cache, what it is called and what there is to say about it; and a folder of the demo when
it sees one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hunyuan.checkpoint import identity, packed, tensor_table, tiny, tiny_config, tiny_tokenizer, tiny_weights
from hunyuan.checkpoint.cached import cached_folder
from hunyuan.checkpoint.full_size import FULL_SIZE_FILE
from hunyuan.demo import ABOUT, FOLDER
from hunyuan.settings import Builtin

DEMO = "the built-in demo"


@dataclass(frozen=True)
class Kind:
    """One of them.

    Attributes:
        name: what answers call it (`X-Model`).
        named: what it is, in a line that says so of every checkpoint.
        about: what whoever meets it unasked ought to know.
        sources: the files that decide what is written.
        make: writes the checkpoint into a folder that is not there yet.
    """

    name: str
    named: str
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
    "demo": Kind("demo", DEMO, ABOUT, _demo_files, lambda out: packed.unpack(FOLDER, out)),
    "tiny": Kind(
        "builtin-tiny-random",
        "the built-in tiny checkpoint of random weights",
        "the built-in tiny checkpoint of random weights, for tests; its pictures are noise",
        _tiny_files,
        tiny.write_tiny_checkpoint,
    ),
}


def known_checkpoints(folder: Path) -> identity.Table:
    """The published checkpoints' fingerprints, and the demo's where the folder's config.json is the demo's.

    The demo's come out of its packed weights, in about a second.
    """
    own = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    config = identity.look_at_config(folder)
    config.pop("quantization_config", None)
    if config != own:
        return identity.PUBLISHED
    data, kind = packed.one_tensor(FOLDER, identity.FIRST)
    return {**identity.PUBLISHED, DEMO: {identity.FIRST: identity.fingerprint(data, kind)}}
