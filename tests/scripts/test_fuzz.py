"""Broken pictures, the short form of scripts/checks/fuzz_images.py: no crash, no hang, no 5xx, no memory kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from hunyuan.compare.sample_photos import encoded, photo
from scripts.checks.fuzz_images import (
    MUTATIONS,
    fuzz_in_process,
    fuzz_over_http,
    mutated,
    originals,
    outcome_in_process,
)
from scripts.support.local_server import STAND_IN, LocalServer, local_server

REFUSALS = 40
KEPT_MIB = 100  # of 40 x about 13 MB that pass through


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(target=STAND_IN) as running:
        yield running


def test_the_originals_are_what_they_seem() -> None:
    outcomes = {name: outcome_in_process(data) for name, data in originals()}
    assert {name for name, outcome in outcomes.items() if outcome != "a picture"} == {"frames.png", "frames.webp"}


def test_the_same_seed_makes_the_same_files_and_all_kinds() -> None:
    assert mutated(5, 1) == mutated(5, 1) != mutated(5, 2)
    kinds = Counter(mutated(number, 0)[0].split()[1] for number in range(200))
    assert set(kinds) == {mutation.__name__ for mutation in MUTATIONS}


def test_a_broken_file_is_a_picture_or_refused() -> None:
    report = fuzz_in_process(400, seed=1)
    assert report.problems == []
    assert report.outcomes["a picture"] > 20
    assert report.outcomes["refused"] > 100


@pytest.mark.server
def test_a_server_answers_every_broken_file(server: LocalServer) -> None:
    report = fuzz_over_http(server, 80, seed=2, warm_up=20)
    assert report.problems == []
    assert set(report.outcomes) == {"200", "400 invalid_image"}


@pytest.mark.server
def test_a_refused_file_is_let_go_of(server: LocalServer) -> None:
    """The framework keeps a timer, and through it the request, for the whole timeout: nothing large may hang on it."""
    broken = encoded(photo(2000, 1500, grain=30), "PNG")[:-1000]
    with httpx.Client(base_url=server.url, timeout=20) as client:

        def refuse() -> None:
            answer = client.post("/edit", files={"image": ("x", broken)}, data={"prompt": "x"})
            assert answer.status_code == 400

        refuse()
        refuse()
        before = server.rss_mib()
        for _ in range(REFUSALS):
            refuse()
    after = server.rss_mib()
    assert before is not None
    assert after is not None
    assert after - before < KEPT_MIB
