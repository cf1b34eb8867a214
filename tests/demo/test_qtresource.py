"""Qt resource collections: files come out as they went in."""

import struct

import pytest

from scripts.demo import qtresource


def collection(files: dict[str, bytes], packed: str = "") -> bytes:
    """A version 3 collection with one folder `pictures`; `packed` names a file that claims to be compressed."""
    names, contents, at = b"", b"", {}
    for name in ("pictures", *files):
        at[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = [struct.pack(">IHII", 0, 2, 1, 1), struct.pack(">IHII", at["pictures"], 2, len(files), 2)]
    for name, data in files.items():
        nodes.append(struct.pack(">IHHHI", at[name], int(name == packed), 0, 0, len(contents)))
        contents += struct.pack(">I", len(data)) + data
    tree = b"".join(node + bytes(8) for node in nodes)
    start = 20
    head = struct.pack(">4sIIII", b"qres", 3, start, start + len(tree), start + len(tree) + len(contents))
    return head + tree + contents + names


def test_files_by_path():
    files = {"a.webp": b"first", "b.jpg": bytes(range(256))}
    assert qtresource.read(collection(files)) == {f"pictures/{name}": data for name, data in files.items()}


def test_compressed_files_are_left_out():
    assert set(qtresource.read(collection({"a": b"1", "b": b"2"}, packed="a"))) == {"pictures/b"}


@pytest.mark.parametrize("data", [b"", b"RIFF" + bytes(40), b"qres"])
def test_anything_else_is_refused(data):
    with pytest.raises(ValueError, match="Qt resource"):
        qtresource.read(data)
