"""`PATH[:SCALE]`: how adapters are named in a setting, on a command line and in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from hunyuan import Settings
from hunyuan.adapters import MOST, Adapter, adapters_of, labelled
from hunyuan.errors import SettingsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ink.safetensors"
    path.write_bytes(b"")
    return path


def test_text_names_files_and_scales(file: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a:b.safetensors"
    odd.write_bytes(b"")
    text = f" {file} , {tmp_path}:-0.5,{odd},{odd}:2"
    assert adapters_of(text) == (Adapter(file), Adapter(tmp_path, -0.5), Adapter(odd), Adapter(odd, 2.0))


def test_python_may_name_them_in_other_ways(file: Path) -> None:
    wanted = (Adapter(file, 0.5),)
    assert adapters_of([f"{file}:0.5"]) == adapters_of([(file, 0.5)]) == adapters_of(wanted) == wanted
    assert Settings(lora=file).lora == Settings(lora=[file]).lora == (Adapter(file),)
    assert Settings(lora=()).lora == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{folder}/none.safetensors", "no such file or folder: {folder}/none.safetensors"),
        ("~/ink.safetensors", "~ stands for the home folder in a shell only"),
        ("{folder}/ink.bin", "{folder}/ink.bin is no .safetensors file; nothing else is read"),
        ("{file}:nan", "ink.safetensors: the scale is nan; -100 to 100 are allowed"),
        ("{file}:101", "ink.safetensors: the scale is 101.0; -100 to 100 are allowed"),
        ("{file}:strong", "no such file or folder: {file}:strong"),
        (" , ", "it names no file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    file: Path, tmp_path: Path, monkeypatch, text: str, said: str
) -> None:
    (tmp_path / "ink.bin").write_bytes(b"")
    text, said = (part.format(folder=tmp_path, file=file) for part in (text, said))
    with pytest.raises(ValueError, match=r".") as caught:
        adapters_of(text)
    assert said in str(caught.value)
    monkeypatch.setenv("HUNYUAN_LORA", text)
    with pytest.raises(SettingsError) as refused:
        Settings()
    assert str(refused.value).startswith("HUNYUAN_LORA=")
    assert said in str(refused.value)


def test_there_is_a_most(file: Path) -> None:
    with pytest.raises(ValueError, match=f"17 adapters are named; at most {MOST}"):
        adapters_of([file] * 17)


def test_a_label_has_the_scale_where_it_is_not_1() -> None:
    assert [labelled("ink", scale) for scale in (1.0, 2, 0, 0.1, -1e-9)] == [
        "ink",
        "ink:2",
        "ink:0",
        "ink:0.1",
        "ink:-1e-09",
    ]
