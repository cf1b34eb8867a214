"""scripts/benchmarks/bench_growth.py: its rows and sums, the text it takes for the model's, a short run on a CPU."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from PIL import ImageChops
from quick_edits import quick_decode

from hunyuan.generation import prefix
from hunyuan.model.network import HunyuanImage3
from hunyuan.requests import STAGES, EditRequest
from scripts.benchmarks import bench_engine, bench_growth, growth_units
from scripts.benchmarks.bench_growth import Point, growth_of, points_of, sums_of
from scripts.benchmarks.growth_units import Units, run_edit, units_of
from scripts.benchmarks.words_engine import words_of

SHORT = ["--device", "cpu", "--size", "256x256", "--prompt-tokens", "100", "--tokens", "12", "--steps", "3"]
FEW = ["--pictures", "1,2", "--sizes", "256x144", "--token-counts", "0,12", "--step-counts", "2,3"]
UNITS = Units(
    prompt=5700,
    decoded=64,
    prepare=0.2,
    prefill=0.18,
    text_start=0.002,
    token=0.005,
    first_step=0.35,
    step=0.3,
    vae=0.17,
)


def test_rows_change_one_thing_each() -> None:
    points = points_of(bench_growth.parse(["--device", "cpu"]))
    usual = Point(1, "1024x1024", 1000, 28)
    assert points == [
        usual,
        *(replace(usual, pictures=count) for count in (2, 3)),
        *(replace(usual, size=size) for size in ("1280x720", "720x1280")),
        *(replace(usual, tokens=count) for count in (0, 500, 2000)),
        *(replace(usual, steps=count) for count in (8, 50)),
    ]
    assert len({point.shape for point in points}) == 8


def test_a_size_is_bench_engine_s_and_no_short_form_of_sizes() -> None:
    options = bench_growth.parse([*SHORT, "--dense", "fp8", "--repeat", "2"])
    assert (options.size, options.sizes[0], options.dense, options.repeat) == ("256x256", "1024x1024", "fp8", 2)
    assert bench_growth.parse(SHORT).repeat == 1


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--gpus", "2"], ["--check"], ["--launches"], ["--step-cache", "taylor"], ["--pictures", "4"]),
        *(["--tokens", "0"], ["--token-counts", "0,7"], ["--step-counts", "0"], ["--repeat", "0"], ["--sizes", "16:9"]),
    ],
    ids=" ".join,
)
def test_what_it_cannot_measure_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_growth.parse(["--device", "cpu", *wrong])
    assert wrong[0] in capsys.readouterr().err


def test_sums_are_sums() -> None:
    sums = sums_of(Point(1, "1024x1024", 1000, 28), UNITS, 40e-9)
    assert sums["think"] == pytest.approx(0.002 + 999 * (0.005 + 40e-9 * 468))
    assert sums["denoise"] == pytest.approx(27 * 0.3)
    assert tuple(sums) == (*STAGES, "total")
    assert sums["total"] == pytest.approx(sum(sums[stage] for stage in STAGES))
    assert sums_of(Point(1, "1024x1024", 0, 1), UNITS, 40e-9)["total"] == pytest.approx(0.2 + 0.18 + 0.35 + 0.17)


def test_a_token_s_growth_is_that_between_the_shortest_and_the_longest_prompt() -> None:
    longer, longest = replace(UNITS, prompt=10_700, token=0.009), replace(UNITS, prompt=15_700, token=0.006)
    silent = replace(UNITS, prompt=5600, decoded=0, token=0.0)
    assert growth_of([longer, silent, longest, UNITS]) == pytest.approx(1e-7)
    assert growth_of([UNITS, replace(UNITS, decoded=12, token=0.004), silent]) == growth_of([silent]) == 0


def test_units_of_an_edit() -> None:
    result = mock.Mock(timings={**dict.fromkeys(STAGES, 0.5), "denoise": 0.9}, usage=mock.Mock(text=60, images=40))
    units = units_of(result, [(0, 1.0), (1, 1.5), (9, 2.0), (17, 3.5)])
    assert (units.prompt, units.decoded, units.text_start, units.token) == (100, 17, 0.5, 2.0 / 16)
    assert units.context == 108.5
    assert units.step == pytest.approx(0.3)
    silent = units_of(result, [])
    assert (silent.prompt, silent.decoded, silent.token, silent.first_step) == (100, 0, 0, 0.5)


@pytest.mark.parametrize("decoded", [9, 40])
def test_steps_see_the_whole_text_and_it_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: int
) -> None:
    """Of 40 tokens, whether all are decoded or most run at once: the picture's stage has each of them, once."""
    engine = bench_engine.build(bench_growth.parse(SHORT), tmp_path)
    monkeypatch.setattr(HunyuanImage3, "decode_image", staticmethod(quick_decode))
    again = mock.Mock(wraps=prefix.prefill)
    monkeypatch.setattr(prefix, "prefill", again)
    request = EditRequest("make it", resolution="256x256", max_new_tokens=40, guidance_scale=1)
    result, marks = run_edit(engine, request, 2, decoded)
    assert [count for count, _ in marks] == [0, *range(1, decoded + 1)]
    words, tokenizer = words_of(engine.checkpoint.tokenizer, 40), engine.checkpoint.tokenizer
    assert result.tokens == len(words) == 40
    assert tokenizer.encode(result.cot_text or "") == [tokenizer.think, *words]
    ((start, stop),) = (call.args[4] for call in again.call_args_list)
    assert result.usage is not None
    assert start == result.usage.text + 39
    assert stop - start < 10
    if decoded < 40:  # all of its keys and values are those of the words, as if the text had been given
        given = replace(request, cot_text=result.cot_text)
        other = engine.run(given, seed=1, steps=2, on_progress=None, cancel=None)
        assert max(ImageChops.difference(result.image, other.image).tobytes()) <= 1


@pytest.mark.slow
def test_a_short_run_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HunyuanImage3, "decode_image", staticmethod(quick_decode))
    monkeypatch.setattr(growth_units, "MEASURED_TOKENS", 10)
    assert bench_growth.main([*SHORT, *FEW, "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    for words in ("CPU: the tiny model", "steps=3", "engine ready after", "not included: HTTP", "kernels: plain"):
        assert words in shown, words
    content = json.loads((tmp_path / "out.json").read_text())
    rows, check = content["rows"], content["check"]
    named = [(row["pictures"], row["size"], row["tokens"], row["steps"]) for row in rows]
    first = (1, "256x256", 12, 3)
    assert named == [first, (2, *first[1:]), (1, "256x144", 12, 3), (1, "256x256", 0, 3), (1, "256x256", 12, 2)]
    for row in rows:
        units, sums = row["measured"], row["sums"]
        assert sums["total"] == pytest.approx(sum(sums[stage] for stage in STAGES))
        assert sums["denoise"] == pytest.approx((row["steps"] - 1) * units["step"])
        assert (units["token"] > 0) == (units["decoded"] == 10) == (row["tokens"] > 0)
    assert rows[0]["measured"] == rows[4]["measured"]
    assert rows[1]["measured"]["prompt"] > rows[0]["measured"]["prompt"] >= 100
    assert [row["stage"] for row in check] == list(bench_engine.TIMED)
    assert all(row["seconds"] > 0 and row["sum_seconds"] > 0 for row in check)
    lines = [line.count("|") for line in shown.splitlines() if line.startswith("|")]
    assert lines == [len(bench_growth.COLUMNS) + 1] * 7 + [5] * 9
    assert re.search(r"^\| 1 \| 256x256 \| 0 \| 3 \| \d+ \| \d\.\d+ s \| in the first step \| none \|", shown, re.M)
