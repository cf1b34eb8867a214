"""Folders in a cache: made once, whole or not there, for several processes, on disks that cannot be written."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hunyuan.checkpoint.cached import cached_folder
from hunyuan.errors import CheckpointError


def make(out: Path) -> None:
    out.mkdir()
    (out / "weights").write_bytes(b"0123456789")
    (out / "config").write_text("small")


def never(out: Path) -> None:
    pytest.fail("made again")


def test_it_is_made_once_and_reused(tmp_path):
    made = cached_folder("a", make, tmp_path / "not" / "yet")
    assert made == tmp_path / "not" / "yet" / "a"
    assert (made / "weights").read_bytes() == b"0123456789"
    assert list(made.parent.iterdir()) == [made]
    assert cached_folder("a", never, made.parent) == made


@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "no manifest", "manifest of something else"])
def test_a_damaged_one_is_replaced(tmp_path, damage):
    made = cached_folder("a", make, tmp_path)
    if damage == "truncated":
        (made / "weights").write_bytes(b"0123")
    elif damage == "one bit":
        (made / "weights").write_bytes(b"0123456788")
    elif damage == "missing":
        (made / "config").unlink()
    else:
        (made / "weights").write_bytes(b"")
        manifest = made / "manifest.json"
        manifest.unlink() if damage == "no manifest" else manifest.write_text('{"sha256": ["weights"]}')
    assert cached_folder("a", make, tmp_path) == made
    assert (made / "weights").read_bytes() == b"0123456789"
    assert (made / "config").exists()
    assert list(tmp_path.iterdir()) == [made]


def test_what_an_ended_process_left_behind_is_in_nobodys_way(tmp_path):
    (tmp_path / "making-x" / "new").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    assert (cached_folder("a", make, tmp_path) / "weights").exists()


def test_making_may_fail_and_leaves_nothing(tmp_path):
    def fails(out: Path) -> None:
        make(out)
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        cached_folder("a", fails, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_yields_to_a_faster_process(tmp_path):
    def slow(out: Path) -> None:
        faster.append(cached_folder("a", make, tmp_path))
        (faster[0] / "mark").write_text("")
        make(out)

    faster: list[Path] = []
    assert [cached_folder("a", slow, tmp_path)] == faster
    assert (faster[0] / "mark").exists()
    assert list(tmp_path.iterdir()) == faster


def test_many_at_once_get_the_same(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: cached_folder("a", make, tmp_path), range(8)))
    assert found == {tmp_path / "a"}
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_the_temporary_folder_serves_where_the_users_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cached_folder("a", make).is_relative_to(tmp_path / "hunyuan-image-bento")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cached_folder("a", make).is_relative_to(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_read_where_it_is_whole(tmp_path, monkeypatch):
    made = cached_folder("a", make, tmp_path)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: pytest.fail("written"))
    assert cached_folder("a", never, tmp_path) == made


def test_nowhere_to_write_is_said_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*; set HUNYUAN_CACHE_DIR to a folder"):
        cached_folder("a", make, tmp_path / "file")
