"""Folders as people have them, and as people who mean harm make them: refused at once, by name, in little memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from own_process import cost_of

from hunyuan.checkpoint import verify
from hunyuan.checkpoint.folder import checkpoint_name, read_config, read_index, read_json, weight_files
from hunyuan.checkpoint.safetensors_file import ShardReader
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.untrusted import MOST_HEADER, MOST_JSON
from hunyuan.errors import CheckpointError
from hunyuan.generation.config import GenerationConfig
from hunyuan.prompt.system_prompt import MOST_SOURCE, MOST_TEXT, SystemPrompts
from hunyuan.prompt.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
HASH = "a1b2c3d4e5" * 4
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4979246\n"
PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
AS_PEOPLE_HAVE_THEM = [
    (b"", "it is empty"),
    (POINTER, "Git LFS pointer, not the file itself: run `git lfs pull`"),
    (bytes(4096), "nothing but zeros"),
    (bytes(20), "nothing but zeros"),
    (PAGE, "a web page: what a server answers in place of a file"),
]


def refused(action: Any, *arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(*arguments)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "checkpoint", shards=2)


def weights_with(folder: Path, content: bytes) -> str:
    path = folder / "model-0001-of-0002.safetensors"
    path.write_bytes(content)
    return refused(ShardReader, path)


def with_header(header: object, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


# --- folders as people have them


@pytest.mark.parametrize(("content", "cause"), AS_PEOPLE_HAVE_THEM)
def test_a_weight_file_that_is_something_else_is_called_by_its_name(folder: Path, content: bytes, cause: str) -> None:
    message = weights_with(folder, content)
    assert message.startswith("model-0001-of-0002.safetensors cannot be read as safetensors: ")
    assert cause in message
    assert any(cause in line for line in verify.problems(folder))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"\x80\x02}q\x00" + bytes(100), "a Python pickle"),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip archive"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (b"Entry not found", "no safetensors file"),
        (b"{}", "no safetensors file"),
        (b"\x9e\x01\x83\x33\x7f\x80\x05\xff" + bytes(64), "no safetensors file"),
    ],
)
def test_other_formats_of_weights_are_named(folder: Path, content: bytes, cause: str) -> None:
    assert cause in weights_with(folder, content)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_weight_file_that_was_cut_off_says_so(folder: Path, part: float) -> None:
    whole = (folder / "model-0001-of-0002.safetensors").read_bytes()
    message = weights_with(folder, whole[: int(len(whole) * part)])
    assert "cut off; download it again" in message


@pytest.mark.parametrize(("content", "cause"), AS_PEOPLE_HAVE_THEM)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX, "tokenizer.json", "system_prompt.py"])
def test_a_small_file_that_is_something_else_is_called_by_its_name(
    folder: Path, name: str, content: bytes, cause: str
) -> None:
    (folder / name).write_bytes(content)
    message = refused(read_all, folder)
    assert message.startswith(name)
    assert cause in message
    assert [line for line in verify.problems(folder) if line.startswith(name) and cause in line]


def read_all(folder: Path) -> None:
    config = read_config(folder)
    weight_files(folder)
    Tokenizer(folder, config.image_base_size)
    GenerationConfig.from_dict(read_json(folder, "generation_config.json"))
    SystemPrompts.read(folder).preset("en_unified")


def test_a_folder_that_is_not_there_is_named_as_it_was_given(tmp_path: Path) -> None:
    assert refused(read_config, Path("/nope")) == "no such folder: /nope"
    assert verify.problems(Path("/nope")) == ["no such folder: /nope"]
    (tmp_path / "file").touch()
    assert refused(read_config, tmp_path / "file") == f"{tmp_path}/file is a file; a checkpoint folder is meant"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A checkpoint as the Hub's client keeps it: links to files named by their hashes."""
    cache = tmp_path / "hub/models--tencent--HunyuanImage-3.0-Instruct"
    made = write_tiny_checkpoint(tmp_path / "made", shards=2)
    snapshot = cache / "snapshots" / HASH
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        blob = cache / "blobs" / f"{number:064x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / blob.name)
    return snapshot


def test_a_snapshot_of_the_hub_has_the_models_name(snapshot: Path, tmp_path: Path) -> None:
    assert checkpoint_name(snapshot) == "HunyuanImage-3.0-Instruct"
    (tmp_path / "link").symlink_to(snapshot)
    assert checkpoint_name(tmp_path / "link") == "HunyuanImage-3.0-Instruct"
    read_all(snapshot)
    assert verify.problems(snapshot) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("HunyuanImage-3-Instruct", "HunyuanImage-3-Instruct"),
        (f"models--HunyuanImage/snapshots/{HASH}", "HunyuanImage"),
        (f"models--a--b--c/snapshots/{HASH}", "c"),
        (f"HunyuanImage-3.0/{HASH}", "HunyuanImage-3.0"),
        (f"models--a--b/snapshots/{HASH}/4bit", "4bit"),
        ("models--a--b", "models--a--b"),
    ],
)
def test_names_of_folders(tmp_path: Path, path: str, name: str) -> None:
    assert checkpoint_name(tmp_path / path) == name


def test_the_caches_root_gets_a_hint_at_the_snapshot(snapshot: Path) -> None:
    cache = snapshot.parents[1]
    for above in (cache, cache.parent, cache.parent.parent, snapshot.parent):
        message = refused(read_config, above)
        assert message.startswith("config.json is missing in the checkpoint folder ")
        assert message.endswith(f"; there is one in {snapshot}: name that folder"), above
    second = cache / "snapshots" / ("b" * 40)
    second.mkdir()
    (second / "config.json").write_text("{}")
    assert f"; there are 2 below, {snapshot} for one: name one of those folders" in refused(read_config, cache)


def test_a_snapshot_without_its_blobs_says_what_is_missing(snapshot: Path, tmp_path: Path) -> None:
    (snapshot.parents[1] / "blobs").rename(tmp_path / "elsewhere")
    message = refused(read_config, snapshot)
    assert message.startswith("config.json cannot be read: it is a link to ../../blobs/")
    assert "mount or copy the whole models--... folder" in message
    assert "which is not there" in verify.problems(snapshot)[0]


# --- folders that mean harm


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.safetensors", "a/b.safetensors", "..", ".", "", "a\0b", "..\\x", "x" * 300]
)
def test_an_index_names_files_of_its_folder_only(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    (folder / INDEX).write_text(json.dumps(index))
    opened: list[str] = []
    monkeypatch.setattr(sys.modules["os"], "open", recording(opened))
    for message in (refused(weight_files, folder), refused(read_index, folder)):
        assert message.startswith(f"{INDEX} names what is no file of this folder: {name[:80]!r}")
    assert any("names what is no file of this folder" in line for line in verify.problems(folder))
    assert opened
    assert all(Path(path).parent == folder for path in opened)


def recording(opened: list[str]) -> Any:
    real = os.open

    def opening(path: Any, *arguments: Any, **named: Any) -> int:
        opened.append(os.fspath(path))
        return real(path, *arguments, **named)

    return opening


@pytest.mark.parametrize("name", ["config.json", INDEX, "tokenizer.json", "system_prompt.py", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_plain_file_is_not_opened(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero")
    with within():
        assert "a folder, a pipe or a device" in refused(read_all, folder)
        assert [line for line in verify.problems(folder) if name in line and "a folder, a pipe or a device" in line]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_weight_file_that_is_none_is_not_opened(folder: Path, kind: str) -> None:
    path = folder / "model-0001-of-0002.safetensors"
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with within():
        assert "a folder, a pipe or a device" in refused(ShardReader, path)
        assert any("a folder, a pipe or a device" in line for line in verify.problems(folder))


DEEP = b"[" * 200_000
DEEP_OBJECT = b'{"a":' * 200_000


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECT, b'{"a":' + DEEP + b"]" * 200_000 + b"}"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX, "tokenizer.json"])
def test_deep_json_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with within():
        message = refused(read_all, folder)
    assert message.startswith(name)
    if name != "tokenizer.json":  # which has a parser of its own
        assert message.endswith("is no valid JSON: it is nested too deeply")
    if name == INDEX:
        assert any("nested too deeply" in line for line in verify.problems(folder))


def test_a_deep_header_is_refused(folder: Path) -> None:
    assert "nested too deeply" in weights_with(folder, with_header(DEEP_OBJECT))
    assert any("nested too deeply" in line for line in verify.problems(folder))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"v": {"b": 1, "c": 1, "b": 1}}', "the key 'b' is there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_json_that_means_two_things_or_nothing(folder: Path, content: str, cause: str) -> None:
    (folder / "config.json").write_text(content)
    message = refused(read_config, folder)
    assert message.startswith("config.json is no valid JSON: ")
    assert cause in message


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("config.json", MOST_JSON),
        (INDEX, MOST_JSON),
        ("generation_config.json", MOST_JSON),
        ("system_prompt.py", MOST_SOURCE),
        ("tokenizer.json", 32 << 20),
    ],
)
def test_a_small_file_has_to_be_small(folder: Path, name: str, most: int) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(20 << 30)  # sparse: it takes no disk
    with within():
        assert refused(read_all, folder) == f"{name} cannot be read: it has {20 << 30} bytes; at most {most} are read"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ((MOST_HEADER + 1).to_bytes(8, "little") + b"{" + bytes(99), f"a header of {MOST_HEADER + 1} bytes; at most"),
        ((2**63).to_bytes(8, "little") + b"{" + bytes(99), "at most"),
        (with_header([]), "does not describe tensors"),
        (with_header({"a": 1}), "does not describe tensors"),
        (with_header({"a": {}}), "data_offsets must be two whole numbers"),
        (with_header({"a": {"data_offsets": [0, 1.5], "dtype": "U8", "shape": [1]}}), "two whole numbers"),
        (with_header({"a": {"data_offsets": [-4, 4], "dtype": "U8", "shape": [8]}}), "two whole numbers"),
        (with_header({"a": {"data_offsets": [4, 0], "dtype": "U8", "shape": [8]}}), "the wrong way round"),
        (with_header({"a": {"data_offsets": [0, 4], "dtype": "U8", "shape": [-4]}}), "a shape that is none"),
        (with_header({"a": {"data_offsets": [0, 4], "dtype": "U8", "shape": [True, 4]}}), "a shape that is none"),
        (with_header({"a": {"data_offsets": [0, 4], "dtype": "U8", "shape": [10**30]}}), "a shape that is none"),
        (with_header({"a": {"data_offsets": [0, 4], "dtype": "U8", "shape": [1] * 1000}}), "no dtype or no shape"),
        (with_header({"a": {"data_offsets": [0, 4], "dtype": ["U8"], "shape": [4]}}), "no dtype or no shape"),
        (with_header({"a": {"data_offsets": [0, 4], "dtype": "U8", "shape": [5]}}), "has 4 bytes, not those"),
        (
            with_header(
                {
                    "a": {"data_offsets": [0, 4], "dtype": "U8", "shape": [4]},
                    "b": {"data_offsets": [2, 6], "dtype": "U8", "shape": [4]},
                },
                bytes(6),
            ),
            "b lies over the tensor before it",
        ),
        (with_header(b'{"a": {"data_offsets": [0, 0]}, "a": {"data_offsets": [0, 0]}}'), "the key 'a' is there twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_mean_harm(folder: Path, content: bytes, cause: str) -> None:
    with within():
        assert cause in weights_with(folder, content)
        verify.problems(folder)


@pytest.mark.parametrize(
    "source",
    [
        'a = "x" * 10\n' + 'a0 = "0123456789"\n' + "".join(f"a{i + 1} = a{i} + a{i}\n" for i in range(40)),
        'a0 = "0123456789"\n' + "a1 = " + " + ".join(["a0"] * 40_000),
    ],
    ids=["doubling", "one sum"],
)
def test_texts_that_grow_without_end_are_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "system_prompt.py").write_text(source)
    with within():
        message = refused(SystemPrompts.read, tmp_path)
    assert message.startswith("system_prompt.py: ")
    assert f"at most {MOST_TEXT} are allowed" in message or "cannot be parsed" in message


@pytest.mark.parametrize("source", ["x = " + "(" * 50_000, "x = " + "-" * 100_000 + "1", "x = " + "[" * 90_000])
def test_deep_python_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "system_prompt.py").write_text(source)
    with within():
        assert refused(SystemPrompts.read, tmp_path).startswith("system_prompt.py: cannot be parsed")


@pytest.mark.slow
def test_the_densest_python_stays_small(tmp_path: Path) -> None:
    """As many nodes a byte as a syntax tree can have."""
    (tmp_path / "system_prompt.py").write_text("x=[" + "1," * (MOST_SOURCE // 2 - 4) + "]")
    assert cost_of(SystemPrompts.read, tmp_path).mib < 400


@pytest.mark.slow
def test_the_densest_json_stays_small(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a":[' + b"[]," * (MOST_JSON // 3 - 6) + b"[]]}")
    assert cost_of(read_config, tmp_path).mib < 800


@contextmanager
def within(seconds: float = 5) -> Iterator[None]:
    """Much less is needed; the tests run beside others."""
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds
