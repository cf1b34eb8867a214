"""Which keys are taken, and that no message holds one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hunyuan.api_keys import LARGEST_FILE, MOST, digest_of, keys_in, keys_of

GOOD = "0123456789abcdef0123"
OTHER = "fedcba9876543210fedc"


def test_entries_have_commas_or_lines_between_them() -> None:
    text = f"# whose\n a:{GOOD}\n\n  # more\nb.c_d-2 : {OTHER}==, e:{OTHER}\r\n"
    assert [(key.name, key.digest) for key in keys_of(text)] == [
        ("a", digest_of(GOOD.encode())),
        ("b.c_d-2", digest_of(f"{OTHER}==".encode())),
        ("e", digest_of(OTHER.encode())),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no key"),
        ("\n# nothing\n", "it holds no key"),
        (GOOD, "entry 1 is not NAME:KEY"),
        (f"a:{GOOD},:{OTHER}", "entry 2 is not NAME:KEY"),
        (f"a b:{GOOD}", "entry 1 is not NAME:KEY"),
        (f"{'n' * 65}:{GOOD}", "entry 1 is not NAME:KEY"),
        ("a:", "the key of a is empty"),
        (f"a:{GOOD}é", "the key of a has a character"),
        (f"a:{GOOD} {OTHER}", "the key of a has a character"),
        (f"a:{GOOD}=x", "the key of a has a character"),
        (f"a:{GOOD[:19]}", "the key of a is weak"),
        (f"a:{'1234567' * 9}", "the key of a is weak"),
        (f"a:{GOOD * 26}", "the key of a is longer than 512"),
        (f"a:{GOOD},a:{OTHER}", "two entries are named a"),
        (f"a:{GOOD},b:{GOOD}", "a and b have the same key"),
        (",".join(f"n{number}:{GOOD}{number}" for number in range(MOST + 1)), "1,001 keys"),
    ],
)
def test_what_is_wrong_is_said_without_the_key(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        keys_of(text)
    assert not [part for part in (GOOD, OTHER, GOOD[:10], "1234567") if part in str(caught.value)]


def test_a_file_is_text_of_some_size(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"a:{GOOD}\n")
    assert [key.name for key in keys_in(path)] == ["a"]
    path.write_bytes(b"a:\xff" + GOOD.encode())
    with pytest.raises(ValueError, match="no UTF-8"):
        keys_in(path)
    path.write_bytes(bytes(LARGEST_FILE + 1))
    with pytest.raises(ValueError, match="larger than"):
        keys_in(path)
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        keys_in(tmp_path)
