"""The held-out test set: complete, of allowed sources, and nowhere in training."""

import pytest

from scripts.demo import pack, sources, testset
from scripts.demo.credits_table import table
from scripts.demo.edits import NAMES, in_order
from scripts.demo.tasks import SUBJECTS, UNKNOWN, go_together
from scripts.demo.wordings import could_say


def test_pictures():
    photos, clip_art = testset.photos(), testset.clip_art()
    assert len(photos) == len(clip_art) == 24
    assert all(min(photo.size) == 256 for photo in photos.values())
    assert all(max(art.size) == 240 and art.getextrema()[3][0] == 0 for art in clip_art.values())
    assert sum(file.stat().st_size for file in testset.FOLDER.rglob("*") if file.is_file()) < 3_000_000


def test_the_test_pictures_are_the_credits_held_out_ones():
    split = {photo.name: photo.split for photo in sources.photos()}
    assert {name for name, of in split.items() if of == "test"} == set(testset.photos())
    assert set(split.values()) == {"train", "validation", "test"}
    hashes = [photo.sha256 for photo in sources.photos()]
    assert len(set(hashes)) == len(hashes)
    assert not set(pack.TEST_CLIP_ART) & set(SUBJECTS.values())


def test_every_licence_is_allowed_and_share_alike_is_refused(tmp_path, monkeypatch):
    assert all(photo.licence in sources.ALLOWED for photo in sources.photos())
    assert not any("SA" in licence or "GPL" in licence for licence in sources.ALLOWED)
    text = sources.CREDITS.read_text(encoding="utf-8").replace('licence = "CC0-1.0"', 'licence = "CC-BY-SA-4.0"', 1)
    changed = tmp_path / "credits.toml"
    changed.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sources, "CREDITS", changed)
    with pytest.raises(sources.SourceError, match="CC-BY-SA"):
        sources.photos()


def test_the_table_names_every_source():
    rows = table()
    for photo in sources.photos():
        assert photo.package in rows
        assert photo.author in rows
    assert "openclipart-png" in rows


def test_wordings():
    wordings = testset.wordings()
    assert len(wordings) == len({w.prompt for w in wordings}) == 100
    assert sum(w.task == UNKNOWN for w in wordings) >= 20
    assert sum(not w.prompt.isascii() for w in wordings) >= 20
    assert {step.name for w in wordings for step in w.task.steps} == set(NAMES)


@pytest.mark.parametrize("wording", testset.wordings(), ids=lambda w: w.prompt)
def test_training_cannot_draw_a_held_out_wording(wording):
    assert not could_say(wording.prompt, wording.sources)


@pytest.mark.parametrize(
    ("name", "count", "unknown", "pairs"), [("blind_wordings", 160, 20, 30), ("blind_wordings_2", 120, 21, 20)]
)
def test_other_wordings_are_in_the_same_form(name: str, count: int, unknown: int, pairs: int) -> None:
    others = testset.wordings(testset.FOLDER / f"{name}.toml")
    assert len(others) == len({wording.prompt for wording in others}) == count
    assert sum(wording.task.kind == "unknown" for wording in others) == unknown
    assert sum(len(wording.task.steps) == 2 for wording in others) == pairs
    assert all(wording.task.steps == in_order(wording.task.steps) for wording in others)
    assert all(len(wording.task.steps) < 2 or go_together(*wording.task.steps) for wording in others)
    assert {wording.sources for wording in others} == {1}


def test_the_card_has_the_table():
    assert table() in (testset.FOLDER.parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
