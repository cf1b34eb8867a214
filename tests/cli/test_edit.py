"""`hunyuan edit` and `hunyuan generate`: a picture in a file, what is shown meanwhile, and what is refused in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from server_process import photo_bytes

from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.cli.main import main
from hunyuan.cli.progress import Progress
from hunyuan.editor import Editor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo_bytes(96, 64))
    return path


@pytest.mark.slow
def test_an_edit_is_written_with_its_seed(model: Path, photo: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.png"
    options = ("-o", str(out), "--model", str(model), "--seed", "3", "--steps", "1", "--resolution", "1:1")
    assert main(["edit", str(photo), "Make it blue", *options]) == 0
    told = capsys.readouterr()
    with Image.open(out) as picture:
        assert (picture.format, picture.text["Seed"], picture.text["Model"]) == ("PNG", "3", "model")
        assert "Prompt" not in picture.text
        width, height = picture.size
    assert told.out.startswith(f"{out}: {width}x{height}, seed 3, 1 steps, ")
    assert "Make it blue" not in told.out


@pytest.mark.slow
def test_a_picture_from_words_alone(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.webp"
    options = ("-o", str(out), "--model", str(model), "--task", "image", "--steps", "1", "--size", "1:1", "--quiet")
    assert main(["generate", "A crane", *options]) == 0
    with Image.open(out) as picture:
        assert picture.format == "WEBP"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("prompt", "out", "options", "status", "message"),
    [
        ("blue", "out.gif", [], 2, "--out: got"),
        ("blue", "no/folder.png", [], 2, "--out: there is no folder"),
        (" ", "out.png", [], 2, "prompt: it is blank"),
        ("blue", "out.png", ["--steps", "101"], 2, "steps: got 101"),
        ("blue", "out.png", ["--resolution", "huge"], 2, "resolution: got 'huge'"),
        ("blue", "out.png", ["--image", "missing.png"], 2, "image: missing.png: No such file"),
        ("blue", "out.png", ["--photo", __file__], 2, "is none of PNG, JPEG, WebP, HEIC and AVIF"),
        ("blue", "out.png", ["--model", "nowhere"], 2, "MODEL_ID="),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    photo: Path, tmp_path: Path, monkeypatch, capsys, prompt, out, options, status, message
) -> None:
    monkeypatch.setattr(Editor, "load", lambda *_: pytest.fail("loaded"))
    assert main(["edit", str(photo), prompt, "-o", str(tmp_path / out), *options]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


class Terminal:
    """Standard error that says it is a terminal, and keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_a_bar_per_stage_and_the_text_in_between(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress() as progress:
        progress.on_progress("prefill", 1, 1)
        for done, piece in enumerate(("A", " red", " hat")):
            progress.on_progress("think", done, 2048)
            progress.on_text(piece)
        for done in (1, 2):
            progress.on_progress("denoise", done, 2)
    assert "A red hat\n" in terminal.text
    assert "prefill: 100%" in terminal.text
    assert "denoise: 100%" in terminal.text
    assert terminal.text.index("A red hat") < terminal.text.index("denoise")


def test_a_folder_without_a_config_is_one_line(tmp_path: Path, capsys, caplog) -> None:
    """The log goes to standard error, too: neither it nor the progress says anything before."""
    (tmp_path / "empty").mkdir()
    assert main(["generate", "A crane", "-o", str(tmp_path / "out.png"), "--model", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err == "error: config.json is missing in the checkpoint folder empty\n"
    assert caplog.messages == []
