"""Requests to calibrate with: files, folders, the built-in ones, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hunyuan.calibration.drawing import drawing
from hunyuan.calibration.requests import BUILT_IN, ROUNDS, fingerprint, held_out, read_requests
from hunyuan.errors import InvalidRequest
from hunyuan.pictures.reader import load_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        drawing(40, 30, seed=i).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"Prompt {i}\n")
    return tmp_path


def write(folder: Path, *entries: object) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries))
    return path


def test_built_in_requests_fit_the_model_s_pictures():
    found = read_requests(None, 256)
    assert len(found) == ROUNDS * len(BUILT_IN)
    assert {len(request.images) for request in found} == {0, 1, 2}
    for request in found:
        for image in request.images:
            picture = load_image(image)
            assert 0.9 * 256**2 < picture.width * picture.height < 1.1 * 256**2
        assert request.cot_text is not None
        assert "<recaption>" in request.cot_text


def test_a_folder_of_pictures_with_their_prompts(folder):
    found = read_requests(folder, 256)
    assert [request.prompt for request in found] == [f"Prompt {i}" for i in range(4)]
    assert found[2].images == [folder / "2.png"]
    assert found[2].cot_text == "<recaption>Prompt 2</recaption>"


def test_a_file_of_requests_by_itself_or_in_its_folder(folder):
    entry = {"prompt": "Both", "images": ["0.png", "1.png"], "cot_text": "<think>x</think>", "resolution": "1:1"}
    path = write(folder, entry, {"prompt": "None"}, "", *[{"prompt": "x"}] * 2)
    for source in (path, folder):
        first, second, *_ = read_requests(source, 256)
        assert (first.prompt, len(first.images), first.cot_text, first.resolution) == (
            "Both",
            2,
            "<think>x</think>",
            "1:1",
        )
        assert (second.images, second.resolution) == ([], "auto")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no json", "line 2: Expecting value"),
        ({"prompt": "x", "pictures": []}, "line 2: expected an object with"),
        ({"prompt": " "}, "line 2: prompt must be"),
        ({"prompt": "x", "images": ["0.png"] * 4}, "line 2: images must be a list of at most 3"),
        ({"prompt": "x", "images": ["none.png"]}, "line 2: images: there is no file none.png"),
        ({"prompt": "x", "cot_text": 5}, "line 2: cot_text"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder, entry, message):
    with pytest.raises(InvalidRequest, match=message):
        read_requests(write(folder, {"prompt": "fine"}, entry), 256)


def test_too_few_and_a_picture_without_a_prompt(folder):
    (folder / "3.txt").unlink()
    with pytest.raises(InvalidRequest, match=r"3\.png has no prompt: 3\.txt is missing"):
        read_requests(folder, 256)
    with pytest.raises(InvalidRequest, match="holds 1 requests; 4 to 512"):
        read_requests(write(folder, {"prompt": "x"}), 256)
    with pytest.raises(InvalidRequest, match="none"):
        read_requests(folder / "none", 256)


def test_every_fourth_only_measures():
    assert held_out(4) == {3}
    assert held_out(17) == {3, 7, 11, 15}


def test_fingerprint_knows_texts_and_pixels(folder):
    found = read_requests(folder, 256)
    before = fingerprint(found)
    assert fingerprint(read_requests(folder, 256)) == before
    pixels = np.array(Image.open(folder / "1.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "1.png")
    assert fingerprint(read_requests(folder, 256)) != before
    (folder / "2.txt").write_text("Another")
    assert len({before, fingerprint(read_requests(folder, 256))}) == 2


def test_drawings_differ_by_their_number_and_nothing_else():
    first, again, other = (np.asarray(drawing(60, 40, seed=s)) for s in (1, 1, 2))
    assert first.shape == (40, 60, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
