"""The golden checker: what it compares, what it leaves out by name, and what it cannot know and so fails.

That it notices every weight and constant is in `test_goldens_perturbed.py`; that all sections agree, in
`tests/test_without_accel.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_copy import perturb_weight
from safetensors.torch import load_file, save_file

from scripts import check_goldens
from scripts.goldens.folder import Golden


@pytest.fixture(scope="module")
def shared(golden: Path) -> Golden:
    return Golden(golden)


def test_every_section_is_known(golden: Path) -> None:
    sections = json.loads((golden / "manifest.json").read_text())["sections"]
    assert [name for name in sections if check_goldens.checker(name) is None] == []


@pytest.mark.slow
def test_only_what_may_be_left_out_is(shared: Golden) -> None:
    reasons = {
        reason
        for section in ("tokens", "moe", "backbone", "e2e_t2i_fixed", "e2e_t2i_taylor", "backbone_easymoe")
        for reason in check_goldens.check_section(shared, section).left_out.values()
    }
    assert reasons == {
        "recorded with token dropping",
        "message list: this API has none",
    }


@pytest.mark.slow
def test_of_an_edit_with_dropping_only_what_the_router_decides_is_left_out(shared: Golden) -> None:
    left = {name: set(check_goldens.check_section(shared, name).left_out) for name in ("e2e_t2i_fixed", "backbone")}
    assert left == {"e2e_t2i_fixed": {f"pred_{i}" for i in range(4)}, "backbone": {"layer0", "layer1", "attn1"}}


def test_every_guidance_embedding_is_compared(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Distil folder records: the embedding of its guidance scale, named by the scale times 1000."""
    golden = Golden(copy)
    distil = golden.model.time_embed  # any embedder will do
    tensors = load_file(copy / "embed.safetensors")
    with torch.no_grad():
        extra = {f"guidance_emb_{v}": distil(torch.tensor([float(v)])) for v in (2500, 1000)}
    save_file({**tensors, **extra}, copy / "embed.safetensors")
    assert "has none" in check_goldens.check_section(golden, "embed").failures[0]
    monkeypatch.setattr(golden.model, "guidance_emb", distil)
    check = check_goldens.check_section(golden, "embed")
    assert check.failures == []
    assert set(extra) <= check.compared
    extra["guidance_emb_1000"] += 0.01
    save_file({**tensors, **extra}, copy / "embed.safetensors")
    assert check_goldens.check_section(golden, "embed").failures


@pytest.mark.parametrize(
    ("section", "name"),
    [
        pytest.param("e2e_t2i_fixed", "guided_1", marks=pytest.mark.slow),
        pytest.param("e2e_t2i_fixed", "latents_3", marks=pytest.mark.slow),
        pytest.param("e2e_t2i_fixed", "vae_in", marks=pytest.mark.slow),
        pytest.param("e2e_t2i_fixed", "sigmas", marks=pytest.mark.slow),
        ("backbone", "ln_f"),
        ("backbone", "logits_last4"),
    ],
)
def test_what_is_computed_from_recorded_values_is_really_compared(copy: Path, section: str, name: str) -> None:
    tensors = load_file(copy / f"{section}.safetensors")
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, copy / f"{section}.safetensors")
    assert any(name in failure for failure in check_goldens.check_section(Golden(copy), section).failures)


@pytest.mark.slow
@pytest.mark.parametrize("fact", ["output_size_wh", "cot_text", "text_calls", "step_inputs"])
def test_the_facts_of_an_edit_with_dropping_are_compared(copy: Path, fact: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    meta = manifest["sections"]["e2e_t2i_recaption"]
    change = {
        "output_size_wh": [304, 209],
        "cot_text": ["<recaption> something else</recaption>"],
        "text_calls": [{**meta["text_calls"][0], "prompt_len": 24}],
        "step_inputs": meta["step_inputs"][::-1],
    }
    meta[fact] = change[fact]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any(fact in failure for failure in check_goldens.check_section(Golden(copy), "e2e_t2i_recaption").failures)


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("section", "names", "still"),
    [
        ("moe", ["x"], "out_easy_topk"),
        ("vae", ["decode_in"], "decode_out"),
        ("embed", ["patch_in", "final_in"], "final_out"),
    ],
)
def test_an_input_that_was_trimmed_is_drawn_again(copy: Path, section: str, names: list[str], still: str) -> None:
    trim(copy, section, names)
    check = check_goldens.check_section(Golden(copy), section)
    assert check.failures == []
    assert still in check.compared


@pytest.mark.parametrize(
    ("section", "name", "lost"),
    [("embed", "patch_t", "final_out"), ("embed", "t", "sinusoid"), ("backbone_easymoe", "positions", "layer0")],
)
def test_what_cannot_be_computed_any_more_is_left_out_by_name(copy: Path, section: str, name: str, lost: str) -> None:
    trim(copy, section, [name])
    check = check_goldens.check_section(Golden(copy), section)
    assert check.failures == []
    assert lost not in check.compared
    assert name in check.left_out[lost]


def trim(folder: Path, section: str, names: list[str]) -> None:
    """Takes tensors out of a section, as a trimmed folder would lack them."""
    path = folder / f"{section}.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key not in names}, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        del manifest["sections"][section]["keys"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_something_recorded_and_not_compared_fails(copy: Path) -> None:
    tensors = load_file(copy / "vit.safetensors")
    save_file({**tensors, "novel": torch.zeros(1)}, copy / "vit.safetensors")
    failures = check_goldens.check_section(Golden(copy), "vit").failures
    assert failures == ["not compared: novel"]


def test_something_the_manifest_names_and_the_file_lacks_fails(copy: Path) -> None:
    tensors = load_file(copy / "vit.safetensors")
    del tensors["aligned"]
    save_file(tensors, copy / "vit.safetensors")
    failures = check_goldens.check_section(Golden(copy), "vit").failures
    assert failures == ["named by the manifest and not in the file: aligned"]


def test_an_unknown_section_fails(copy: Path) -> None:
    manifest: dict[str, Any] = json.loads((copy / "manifest.json").read_text())
    manifest["sections"] = {"novel": {"file": "x.safetensors"}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert check_goldens.check_section(Golden(copy), "novel").failures == ["unknown section"]


def test_command_line_reports_and_sets_the_exit_code(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_goldens.main([str(copy), "--section", "scheduler", "--section", "vit"]) == 0
    assert "4 of   4 compared" in capsys.readouterr().out
    perturb_weight(copy, "vision_aligner.layers.0.weight")
    assert check_goldens.main([str(copy), "--section", "vit"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "aligned" in out
