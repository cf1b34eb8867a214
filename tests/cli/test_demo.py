"""`hunyuan demo`: the packed checkpoint of the package as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hunyuan import demo
from hunyuan.cli.main import main


@pytest.fixture
def whole(packed_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint, which lies packed in the demo's place."""
    monkeypatch.setattr(demo, "FOLDER", packed_tiny / "packed")
    return packed_tiny / "whole"


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_it_writes_the_whole_folder(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    assert main(["demo", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert f"wrote {out}: " in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "mine"):
        assert main(["demo", str(out)]) == 2
        assert "is there already and no empty folder" in capsys.readouterr().err
