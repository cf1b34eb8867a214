"""Which compiled tile FlashInfer's fused mixture of experts shall use: measured numbers, by mode and number of tokens.

A tactic is a pair of positions in FlashInfer's own list (`profile_ids`), one for each matrix product; what a position
means depends on FlashInfer's version only. Without a pair FlashInfer takes its first tile, five times slower, so a
missing entry is an error here. Entries come from the table below and from a file that warm-up writes. Knows no tensors
and imports neither torch nor FlashInfer.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hunyuan.errors import HunyuanError

MODES = ("bf16", "fp8", "humming")
BUCKETS = (1, 16, 1024, 4120, 8240)  # tokens; 4120 and 8240 are a denoising step of one row and of two
NEARLY = 1.05  # a call this many times larger than the largest bucket is not measured by itself
FARTHEST = 8.0  # an entry serves this many times more or fewer tokens than it was measured with
FILE_NAME = "moe_tactics.json"

ProfileIds = tuple[int, int]

log = logging.getLogger(__name__)


class Untuned(HunyuanError):
    """No tactic was measured for this mode, shape, GPU and number of tokens: it would run, but slowly."""


@dataclass(frozen=True)
class Key:
    """What a tactic depends on besides the number of tokens.

    Attributes:
        version: FlashInfer's.
        gpu: `gpu_family` of the device.
        shape: experts, experts per token, hidden size, width of one expert.
    """

    version: str
    gpu: str
    mode: str
    shape: tuple[int, int, int, int]

    def text(self) -> str:
        return "/".join([self.version, self.gpu, self.mode, "x".join(map(str, self.shape))])


def gpu_family(major: int, minor: int, multiprocessors: int) -> str:
    """GPUs of one name run the same kernels on the same number of processors, as an H100 SXM and an H200 do."""
    return f"sm_{major}{minor}x{multiprocessors}"


_REAL = (64, 8, 4096, 3072)
_VERSION = "0.7.2.post1"
# Best of the tiles compiled into the measured package. No tactic of the second product here sums a token's experts in
# the product itself (that one adds with atomics, so two runs would differ): of bf16 at 8240 the second half is the best
# such tile at 4120. 1, 4120 and 8240 were measured on an H100, the others on an H200 (bench_moe.py, warm-up).
_TABLE: dict[Key, dict[int, ProfileIds]] = {
    Key(_VERSION, gpu_family(9, 0, 132), "bf16", _REAL): {
        1: (34, 96),
        16: (18, 81),
        1024: (32, 96),
        4120: (32, 96),
        8240: (11, 96),
    },
    Key(_VERSION, gpu_family(9, 0, 132), "fp8", _REAL): {
        1: (22, 72),
        16: (18, 86),
        1024: (32, 79),
        4120: (33, 87),
        8240: (11, 47),
    },
    Key(_VERSION, gpu_family(9, 0, 132), "humming", _REAL): {
        1: (52, 198),
        16: (119, 245),
        1024: (104, 231),
        4120: (97, 222),
        8240: (97, 223),
        8448: (97, 222),
    },
}

# Tiles worth trying at warm-up, as positions in the first product's list; the second product's list starts at _FIRST
# and, in the plain modes, has the swapped tiles behind those that sum up by themselves.
_FIRST = {"bf16": 45, "fp8": 36, "humming": 126}
_PLAIN_TILES = 18
_TRIED = {
    "bf16": (11, 15, 18, 22, 25, 28, 29, 30, 32, 33, 34),
    "fp8": (11, 15, 18, 22, 25, 28, 29, 30, 32, 33, 34),
    "humming": (4, 48, 52, 72, 76, 84, 85, 96, 97, 104, 105, 119),
}


def second_product(mode: str, position: int) -> int:
    """The profile id, for the second matrix product, of the tile that the first one has at `position`."""
    swapped = mode != "humming" and position >= _PLAIN_TILES
    return _FIRST[mode] + position + _PLAIN_TILES * swapped


def candidates(mode: str, everything: bool = False) -> tuple[list[int], list[int]]:
    """Profile ids to try for the first and the second product; all deterministic ones with `everything`.

    Tiles that are not compiled throw when they are called; whoever tries them skips those.
    """
    count = _FIRST[mode] if mode == "humming" else 2 * _PLAIN_TILES
    positions = list(range(count)) if everything else list(_TRIED[mode])
    return positions, [second_product(mode, p) for p in positions]


def all_profile_ids() -> dict[str, frozenset[int]]:
    """Every profile id that the engine may choose without being told to try all, by mode: what must be compiled."""
    found: dict[str, set[int]] = {mode: set() for mode in MODES}
    for key, by_tokens in _TABLE.items():
        found[key.mode].update(i for pair in by_tokens.values() for i in pair)
    return {mode: frozenset(ids) for mode, ids in found.items()}


def usual_buckets(most: int) -> tuple[int, ...]:
    """What warm-up looks at: `BUCKETS` up to `most`, and `most` itself unless the last of them is nearly that."""
    buckets = tuple(tokens for tokens in BUCKETS if tokens <= most)
    return buckets if buckets and most <= NEARLY * buckets[-1] else (*buckets, most)


def nearest(tokens: int, tuned: Iterable[int]) -> int | None:
    """The tuned number of tokens with the smallest ratio to `tokens`, the larger of two; None beyond `FARTHEST`."""
    near = min(sorted(tuned, reverse=True), key=lambda t: abs(math.log(t / tokens)), default=None)
    if near is None or max(near, tokens) > FARTHEST * min(near, tokens):
        return None
    return near


@dataclass
class Tactics:
    """All entries that this process knows: the table's, then those of the file in `cache_dir`, then new ones.

    Args:
        cache_dir: folder of the file that `remember` writes; None keeps new entries in memory only.
    """

    cache_dir: Path | None = None
    entries: dict[str, dict[int, ProfileIds]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, by_tokens in _TABLE.items():
            self.entries.setdefault(key.text(), {}).update(by_tokens)
        for text, stored in _read(self._path()).items():
            self.entries.setdefault(text, {}).update(stored)

    def find(self, key: Key, tokens: int) -> ProfileIds:
        """The pair for the nearest tuned number of tokens. Raises `Untuned`."""
        tuned = self.entries.get(key.text(), {})
        near = nearest(tokens, tuned)
        if near is None:
            known = ", ".join(map(str, sorted(tuned))) or "none"
            raise Untuned(f"no tuned MoE tactic for {tokens} tokens of {key.text()} (tuned: {known}); tune at warm-up")
        return tuned[near]

    def has(self, key: Key, tokens: int) -> bool:
        """Whether exactly `tokens` was measured."""
        return tokens in self.entries.get(key.text(), {})

    def remember(self, key: Key, tokens: int, ids: ProfileIds) -> None:
        """Adds an entry, and writes the file at once where there is a folder for it.

        A folder that cannot be written is said in the log and is no error: the next start measures again.
        """
        self.entries.setdefault(key.text(), {})[tokens] = ids
        path = self._path()
        if path is None:
            return
        stored = _read(path)
        stored.setdefault(key.text(), {})[tokens] = ids
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(stored, indent=1, sort_keys=True))
            temporary.replace(path)  # a second process never reads half a file
        except OSError as error:
            log.warning("the measured MoE tactic is not kept for the next start: %s", error)

    def forget(self, key: Key, tokens: int) -> None:
        """Drops an entry that turned out not to run here."""
        self.entries.get(key.text(), {}).pop(tokens, None)

    def _path(self) -> Path | None:
        return None if self.cache_dir is None else self.cache_dir / FILE_NAME


def _read(path: Path | None) -> dict[str, dict[int, ProfileIds]]:
    if path is None or not path.is_file():
        return {}
    try:
        raw: Mapping[str, Mapping[str, list[int]]] = json.loads(path.read_text())
        return {text: {int(t): _pair(ids) for t, ids in tuned.items()} for text, tuned in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("ignoring the MoE tactics in %s: %s", path, error)
        return {}


def _pair(ids: list[int]) -> ProfileIds:
    first, second = ids
    return int(first), int(second)
