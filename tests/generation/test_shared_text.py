"""Edits whose texts are decoded together: the same pictures as alone, and one's trouble is not another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from quick_edits import edit, quick_checkpoint

from hunyuan import CancelToken, EditRequest
from hunyuan.errors import Cancelled, InvalidImage
from hunyuan.generation import job as job_module
from hunyuan.generation.company import TextCompany
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.generation.shared_text import SharedTextJob
from hunyuan.generation.workspace import Workspace, text_company
from hunyuan.requests import EditResult

CAPACITY = 600


@pytest.fixture(scope="module")
def checkpoint(golden: Path) -> Iterator[Checkpoint]:
    with quick_checkpoint(golden) as checkpoint:
        yield checkpoint


@pytest.fixture
def company(checkpoint: Checkpoint) -> TextCompany:
    return text_company(checkpoint.model, 3, CAPACITY, None)


def begun(checkpoint: Checkpoint, company: TextCompany, request: EditRequest, seed: int = 42, **more: Any) -> Any:
    job = SharedTextJob(checkpoint, request, seed, 2, noise_on_cpu=True, **more)
    job.begin(company)
    return job


def alone(checkpoint: Checkpoint, request: EditRequest, seed: int = 42, workspace: Workspace | None = None) -> Any:
    return EditJob(checkpoint, request, seed, 2, noise_on_cpu=True, workspace=workspace).run()


def facts(result: EditResult) -> tuple[object, ...]:
    return result.image.tobytes(), result.cot_text, result.tokens, result.size, result.seed, result.usage


EDITS: list[dict[str, Any]] = [
    {"resolution": "256x256"},
    {"do_sample": True, "temperature": 4.0, "max_new_tokens": 20, "resolution": "1:1"},
    {"prompt": "A boat", "bot_task": "recaption", "resolution": "1:2"},
    {"images": ["src0.png"]},
    {"use_system_prompt": "en_unified", "drop_think": True},
]


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.slow
def test_an_edit_has_the_same_bytes_alone_and_in_company(
    checkpoint: Checkpoint, company: TextCompany, golden: Path, lent: bool
) -> None:
    """Five edits in three rows, which come and go; with buffers of their own and with the engine's."""
    workspace = Workspace.create(checkpoint.model, 1200, None) if lent else None
    requests = []
    for changes in EDITS:
        images = [golden / "images" / name for name in changes.get("images", ())]
        requests.append(edit(**{**changes, "images": images}))
    expected = [facts(alone(checkpoint, request, i, workspace)) for i, request in enumerate(requests)]
    waiting, jobs, found = list(enumerate(requests)), list[SharedTextJob](), list[Any]()
    while waiting or jobs:
        while waiting and company.places:
            seed, request = waiting.pop(0)
            jobs.append(begun(checkpoint, company, request, seed, workspace=workspace))
            assert jobs[-1].thinking
        found.append(facts(jobs.pop(0).run()))
    assert found == expected
    assert company.places == 3


def test_progress_and_text_are_each_ones_own(checkpoint: Checkpoint, company: TextCompany) -> None:
    heard: list[dict[str, Any]] = [{"text": "", "stages": []} for _ in range(2)]
    jobs = []
    for seed, mine in enumerate(heard):

        def on_text(piece: str, mine: dict[str, Any] = mine) -> None:
            mine["text"] += piece

        def on_progress(stage: str, done: int, total: int, mine: dict[str, Any] = mine) -> None:
            mine["stages"].append((stage, done))

        request = edit(do_sample=True, temperature=4.0, max_new_tokens=10 + 5 * seed, resolution="256x256")
        jobs.append(begun(checkpoint, company, request, seed, on_text=on_text, on_progress=on_progress))
    results = [job.run() for job in jobs]
    assert results[0].cot_text != results[1].cot_text
    for result, mine in zip(results, heard, strict=True):
        assert mine["text"] == result.cot_text
        assert ("think", result.tokens) in mine["stages"]
        assert mine["stages"][-1] == ("vae", 1)
        assert result.timings["think"] > 0
        assert result.timings["total"] >= sum(result.timings[s] for s in ("prepare", "prefill", "think", "denoise"))


def test_one_cancelled_text_leaves_the_others(checkpoint: Checkpoint, company: TextCompany) -> None:
    token, request = CancelToken(), edit(resolution="256x256")
    gone, kept = begun(checkpoint, company, request, cancel=token), begun(checkpoint, company, request)
    token.cancel()
    assert facts(kept.run()) == facts(alone(checkpoint, request))
    assert not gone.thinking
    with pytest.raises(Cancelled):
        gone.run()
    assert company.places == 3


def test_an_edit_that_cannot_begin_takes_no_row(checkpoint: Checkpoint, company: TextCompany) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        begun(checkpoint, company, edit(), cancel=token)
    with pytest.raises(InvalidImage):
        begun(checkpoint, company, edit(images=[Path("nowhere.png")]))
    assert company.places == 3
    given_up = begun(checkpoint, company, edit())
    assert company.places == 2
    given_up.close()
    assert company.places == 3


LEFT_ALONE = {
    "no text": {"bot_task": "image", "resolution": "256x256"},
    "a given text": {"cot_text": "<recaption>a red boat</recaption>", "resolution": "256x256"},
    "too long for a row": {"max_new_tokens": CAPACITY + 1, "resolution": "256x256"},
    "draws among all tokens": {"do_sample": True, "top_k": 0, "temperature": 4.0, "max_new_tokens": 9},
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_for_company_has_its_own_turn(checkpoint: Checkpoint, company: TextCompany, name: str) -> None:
    request = edit(**LEFT_ALONE[name])
    supports = company.supports
    company.supports = lambda sampling: sampling.top_k != 0 and supports(sampling)
    job = begun(checkpoint, company, request)
    assert not job.thinking
    assert company.places == 3
    assert facts(job.run()) == facts(alone(checkpoint, request))


def test_a_text_too_long_for_a_row_leaves_nothing_on_the_device(
    checkpoint: Checkpoint, company: TextCompany, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row bounds how many of them wait. Its pictures are opened once, and its noise is what it is alone."""
    request = edit(images=[golden / "images" / "src0.png"], max_new_tokens=CAPACITY + 1)
    opened: list[object] = []
    load = job_module.load_image
    monkeypatch.setattr(job_module, "load_image", lambda source: opened.append(source) or load(source))
    job = begun(checkpoint, company, request)
    assert not job.thinking
    assert (job.conditions.images, job.prefilled, company.places) == ((), None, 3)
    result = facts(job.run())
    assert len(opened) == 1
    assert result == facts(alone(checkpoint, request))


def test_pictures_are_not_kept_by_the_company(checkpoint: Checkpoint, company: TextCompany) -> None:
    result = begun(checkpoint, company, edit(resolution="256x256")).run()
    assert isinstance(result.image, Image.Image)
    assert company._running == []


def test_an_edit_without_a_text_to_share_does_nothing_ahead(checkpoint: Checkpoint, company: TextCompany) -> None:
    """Its picture would lie on the device while it waits, and it takes no row that bounds how many do."""
    token = CancelToken()
    token.cancel()
    request = edit(bot_task="image", images=[Path("nowhere.png")])
    job = begun(checkpoint, company, request, cancel=token)
    assert not job.thinking
    assert company.places == 3
    assert job.timings == {}
    with pytest.raises(Cancelled):
        job.run()
