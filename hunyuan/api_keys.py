"""The keys that callers may use: entries `NAME:KEY`, each kept as its name and the SHA-256 of its key.

No key stays in memory beyond its reading, and none is in a message: an entry at fault is named by its number, or by
its name where that one is good. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

SHORTEST = 20  # characters; 24 of hexadecimal are 96 random bits
FEWEST_DIFFERENT = 8
LONGEST = 512
MOST = 1000
LARGEST_FILE = MOST * (LONGEST + 128)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what `Authorization: Bearer` can carry: RFC 6750, section 2.1
MAKE_ONE = "`openssl rand -hex 24` makes a good one"


class ApiKey(NamedTuple):
    """`digest` is the SHA-256 of the key, 32 bytes."""

    name: str
    digest: bytes


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def keys_of(text: str) -> tuple[ApiKey, ...]:
    """Entries with a comma or a line's end between them; a line that begins with # is a comment.

    Raises:
        ValueError: there is none, one is malformed or weak, or two have one name or one key; with no key in it.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = [entry.strip() for line in lines for entry in line.split(",")]
    keys = [_key_of(entry, number) for number, entry in enumerate(filter(None, entries), 1)]
    if not keys:
        raise ValueError("it holds no key; write NAME:KEY, or leave the setting out to let everybody in")
    if len(keys) > MOST:
        raise ValueError(f"it holds {len(keys):,} keys; at most {MOST:,} are taken")
    names: set[str] = set()
    owners: dict[bytes, str] = {}
    for key in keys:
        if key.name in names:
            raise ValueError(f"two entries are named {key.name}")
        if key.digest in owners:
            raise ValueError(f"{owners[key.digest]} and {key.name} have the same key")
        names.add(key.name)
        owners[key.digest] = key.name
    return tuple(keys)


def keys_in(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file in which each line is an entry.

    Raises:
        ValueError: as `keys_of`, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise ValueError(f"the file is larger than {LARGEST_FILE:,} bytes")
    try:
        return keys_of(content.decode())
    except UnicodeDecodeError:
        raise ValueError("the file is no UTF-8 text") from None


def _key_of(entry: str, number: int) -> ApiKey:
    name, colon, key = (part.strip() for part in entry.partition(":"))
    if not colon or not _NAME.fullmatch(name):
        raise ValueError(
            f"entry {number} is not NAME:KEY, with a name of at most 64 letters, digits, dots, hyphens and underscores"
        )
    if not key:
        raise ValueError(f"the key of {name} is empty")
    if not _KEY.fullmatch(key):
        raise ValueError(f"the key of {name} has a character that is none of letters, digits and -._~+/ (= at its end)")
    if len(key) > LONGEST:
        raise ValueError(f"the key of {name} is longer than {LONGEST} characters")
    if len(key) < SHORTEST or len(set(key)) < FEWEST_DIFFERENT:
        raise ValueError(
            f"the key of {name} is weak: {SHORTEST} characters and {FEWEST_DIFFERENT} different ones are the least; "
            f"{MAKE_ONE}"
        )
    return ApiKey(name, digest_of(key.encode()))
