"""The demo's comparison of formats: what it kept is taken again, what it did not is run, time is a limit."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.compare.caches import CountingCache, make_cache
from hunyuan.compare.weights import Comparison, Outcome
from scripts.benchmarks import demo_formats
from scripts.benchmarks.demo_formats import CACHES, Results, compare_all

TEXTS = {name: f"{{folder}}@name={name}" for name in ("one", "two", "three")}


def outcome(name: str, count: int) -> Outcome:
    made = Comparison(name, "Mirror it", (64, 48), 8, 40.0, 0.99, 3, [0.1, 0.2], [0.05], 10, 9, 0.9)
    return Outcome(name, 0.11, [made] * count, [Image.new("RGB", (64, 48), "red")] * count)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_tiny_checkpoint(tmp_path / "demo")
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the candidates that were run, "A" for the reference."""
    names: list[str] = []

    def compare(load: Any, found: Sequence[Any], cases: Sequence[Any], watch: Any, on_outcome: Callable) -> Any:
        names.append("A")
        for candidate in found:
            names.append(candidate.name)
            on_outcome(outcome(candidate.name, len(cases)))
        return [SimpleNamespace(result=SimpleNamespace(image=Image.new("RGB", (64, 48), "blue"))) for _ in cases], []

    monkeypatch.setattr(demo_formats, "compare", compare)
    return names


def run(work: Path, minutes: float = 1e9, requests: int = 2) -> bool:
    texts = {name: text.format(folder=work / "demo") for name, text in TEXTS.items()}
    return compare_all(work, texts, argparse.Namespace(requests=requests, minutes=minutes))


def test_time_is_a_limit_and_what_was_compared_is_kept(work, ran, capsys):
    assert not run(work, minutes=0)
    assert ran == ["A", "one"]
    assert not run(work, minutes=0)
    assert ran[2:] == ["A", "two"]
    assert run(work, minutes=0)  # the last one: nothing is left
    assert ran[4:] == ["A", "three"]
    said = capsys.readouterr().out
    assert said.count("| two | 8 | 0.1100 |") == 1
    with Image.open(work / "sheet.png") as sheet:
        assert sheet.size == (8 + 5 * 392, 8 + 2 * 408)
    assert run(work)
    assert ran[6:] == []


def test_other_requests_other_options_and_lost_pictures_are_run_again(work, ran):
    assert run(work)
    assert run(work, requests=1)
    assert ran[4:] == ["A", "one", "two", "three"]
    (work / "results" / "two_0.png").unlink()
    assert run(work, requests=1)
    assert ran[8:] == ["A", "two"]
    (work / "results" / "reference_0.png").unlink()
    assert run(work, requests=1)
    assert ran[10:] == ["A"]


def test_a_result_comes_back_as_it_was(tmp_path):
    results = Results(tmp_path / "results", "these")
    kept = outcome("one", 1)
    results.save("text", kept)
    found = results.load("one", "text")
    assert found is not None
    assert (found.name, found.weight_error, found.comparisons) == (kept.name, kept.weight_error, kept.comparisons)
    assert found.pictures[0].tobytes() == kept.pictures[0].tobytes()
    assert results.load("one", "other") is None
    assert Results(tmp_path / "results", "others").load("one", "text") is None


@pytest.mark.parametrize(("first", "second", "full"), [(*CACHES[0:2], 6), (*CACHES[2:4], 5), (*CACHES[4:6], 4)])
def test_caches_are_compared_at_equal_full_steps(first, second, full):
    for text in (first, second):
        name, *options = text.split(",")
        cache = CountingCache(make_cache(name, dict(option.split("=") for option in options))(8))
        for step in range(8):
            if cache.needs_full(step):
                cache.record(step, torch.zeros(1, 8, 4))
            else:
                cache.forecast()
        assert cache.full_steps == full, text
