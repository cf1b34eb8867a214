"""The archive and the batches drawn from it, with a small archive of made-up pictures."""

from random import Random

import numpy as np
import pytest
import torch

from hunyuan.prompt.resolution import resolution_group
from scripts.demo import edits, pack, sources
from scripts.demo.edits import Step, apply_all
from scripts.demo.pictures import SIZES, Pictures
from scripts.demo.speech import recaption, think
from scripts.demo.tasks import SUBJECTS, UNKNOWN, Task, beside_size
from scripts.demo.wordings import FAMILY_SHARE, Request, draw


@pytest.fixture(scope="module")
def pictures(archive) -> Pictures:
    return Pictures(archive, "cpu", seed=1)


def request(task: Task, sources_: int = 1) -> Request:
    return Request(task, "x", "en", sources_, think(task, "en", sources_), recaption(task, "en", sources_))


def test_the_archive_holds_only_its_split(archive):
    with np.load(archive) as content:
        assert set(content["train_photo_names"]) == {"photo0", "photo1", "photo2"}
        assert set(content["validation_photo_names"]) == {"photo3"}
        train, validation = set(content["train_sprite_names"]), set(content["validation_sprite_names"])
    assert train >= set(SUBJECTS.values())
    assert not train & validation
    assert not (train | validation) & {*pack.TEST_CLIP_ART, "plants/copycat.png"}
    assert validation


def test_a_changed_picture_is_refused(work):
    wrong = sources.Photo("x", "photos", "0.png", "nobody", "CC0-1.0", "train", "0" * 16)
    with pytest.raises(sources.SourceError, match="sha256"):
        sources.picture(wrong, work)


@pytest.mark.parametrize("of", FAMILY_SHARE)
@pytest.mark.parametrize(("h", "w"), [(64, 64), (48, 96)])
def test_batches_of_every_family(pictures, of, h, w):
    rng = Random(4)
    requests = [draw(rng, of) for _ in range(6)]
    given, target = pictures.draw(requests, h, w)
    assert [tuple(x.shape) for x in given] == [(6, 3, h, w)] * requests[0].sources
    assert tuple(target.shape[2:]) == {"turn": (w, h), "beside": beside_size(h, w)}.get(of, (h, w))
    for x in (*given, target):
        assert x.dtype == torch.float32
        assert 0 <= x.min() <= x.max() <= 1
        assert x.isfinite().all()


def test_targets_are_exact(pictures):
    tasks = [Task("edit", (Step("bw"), Step("mirror"))), Task("edit", (Step("frame", "red"),)), UNKNOWN]
    (source,), target = pictures.draw([request(task) for task in tasks], 64, 64)
    for i, task in enumerate(tasks):
        torch.testing.assert_close(target[i : i + 1], apply_all(task.steps, source[i : i + 1]))


def test_only_those_who_ask_get_another_background(pictures):
    red, both = Step("background", "red"), (Step("bw"), Step("background", "blue"))
    asked = [(Step("bw"),), (red,), (Step("mirror"),), both]
    (source,), target = pictures.draw([request(Task("edit", steps)) for steps in asked], 64, 64)
    for i in (0, 2):
        torch.testing.assert_close(target[i : i + 1], apply_all(asked[i], source[i : i + 1]))
    for i, colour in ((1, "red"), (3, "blue")):
        wanted = torch.tensor(edits.COLOURS[colour]).view(3, 1, 1)
        assert ((target[i] - wanted).abs().amax(0) < 1e-3).any()
    grey = (target[3].amax(0) - target[3].amin(0)) < 1e-3
    blue = (target[3] - torch.tensor(edits.COLOURS["blue"]).view(3, 1, 1)).abs().amax(0) < 1e-3
    assert (grey & ~blue).any()  # the figure's inside


def test_a_background_changes_nothing_of_the_figure(pictures):
    tasks = [Task("edit", (Step("background", colour),)) for colour in ("red", "blue")]
    (source,), target = pictures.draw([request(task) for task in tasks] * 4, 64, 64)
    for i, colour in enumerate(("red", "blue") * 4):
        wanted = torch.tensor(edits.COLOURS[colour]).view(3, 1, 1)
        plain = ((target[i] - wanted).abs().amax(0) < 1e-3).float().mean()
        same = ((target[i] - source[i]).abs().amax(0) < 1e-3).float().mean()
        assert plain > 0.1
        assert plain + same > 0.75


def test_first_onto_second_and_unknown_keeps_the_first(pictures):
    (first, second), target = pictures.draw([request(Task("onto"), 2), request(UNKNOWN, 2)], 64, 64)
    assert torch.equal(target[1], first[1])
    assert float(((target[0] - second[0]).abs().amax(0) < 1e-3).float().mean()) > 0.1


def test_words_alone(pictures):
    red, unknown = Task("shape", shape="circle", colour="red", ground="blue"), UNKNOWN
    given, target = pictures.draw([request(red, 0), request(unknown, 0)], 64, 64)
    assert given == []
    torch.testing.assert_close(target[0, :, 32, 32], torch.tensor(edits.COLOURS["red"]))
    torch.testing.assert_close(target[0, :, 2, 2], torch.tensor(edits.COLOURS["blue"]))
    assert torch.equal(target[1], torch.full((3, 64, 64), 0.5))


def test_one_family_at_a_time(pictures):
    with pytest.raises(ValueError, match="several families"):
        pictures.draw([request(Task("edit", (Step("bw"),))), request(Task("beside"), 2)], 64, 64)
    with pytest.raises(ValueError, match="several families"):
        pictures.draw([request(Task("edit", (Step("bw"),))), request(Task("edit", (Step("left"),)))], 64, 64)


def test_a_seed_fixes_the_pictures(archive):
    first, second = (Pictures(archive, "cpu", seed=5).autoencoder(4, 64, 64) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, Pictures(archive, "cpu", seed=6).autoencoder(4, 64, 64))


def test_validation_pictures(pictures):
    assert pictures.held_photos()[0].shape == (3, pack.TILE, pack.TILE)
    assert pictures.held_sprites()[0].shape == (4, 256, 256)


def test_every_size_is_trained_at_standing_as_often_as_lying():
    """A bucket without practice comes back as another one: tall pictures became wide ones."""
    share = {(height, width): share for height, width, share in SIZES}
    assert set(share) == {(b.size.height, b.size.width) for b in resolution_group(256, False).buckets}
    assert abs(sum(share.values()) - 1) < 1e-6
    assert min(share.values()) > 0.005
    standing, lying = (sum(s for (h, w), s in share.items() if way * (h - w) > 0) for way in (1, -1))
    assert abs(standing - lying) < 0.05


def test_two_standing_pictures_side_by_side_are_whole_tokens():
    for height, width, _ in SIZES:
        beside = beside_size(height, width)
        assert beside in {(h, w) for h, w, _ in SIZES}
        assert beside[1] % 32 == 0
    assert beside_size(512, 128)[0] > beside_size(512, 128)[1]
