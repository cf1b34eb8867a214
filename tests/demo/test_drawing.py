"""Batches drawn by processes of their own, and a training that goes on from an exported folder."""

from __future__ import annotations

import math
import pickle
import random
import shutil
from argparse import Namespace
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_model import noise

from hunyuan.checkpoint import tiny
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.vae import Vae
from scripts.demo import autoencoder, drawing, resume, state, transformer, wordings
from scripts.demo.drawing import Drawn, DrawnStream, Pool
from scripts.demo.export import official_weights
from scripts.demo.sequences import Sequences, Stream
from scripts.demo.train import Draws, train_decoder, train_transformer
from scripts.demo.training import Plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: CheckpointConfig) -> Path:
    """A state folder with an autoencoder."""
    out = tmp_path_factory.mktemp("state")
    weights = autoencoder.build(config.vae, seed=0).state_dict()
    state.save(out, "autoencoder_average", {"weights": weights, "scaling": 0.7, "shift": 0.1})
    return out


class OneFamily(Draws):
    """Always two pictures that differ from the answer in their size."""

    def family(self, rng: random.Random):
        return "beside", (256, 256)


def test_a_drawn_batch_trains_as_its_pictures_do(
    folder: Path, config: CheckpointConfig, archive: Path, trained: Path
) -> None:
    """The vision tower sees the same whether it gets the pictures, or what the drawing process made of them."""
    sequences = Sequences(folder, config, 1)
    packed = next(iter(DrawnStream(Stream(sequences, OneFamily(), 1, seed=5), archive, trained, CPU)))
    drawn = Drawn.unpacked(packed, CPU)
    assert drawn.clean.dtype == drawn.conds[0].dtype == torch.float32
    assert len(drawn.sources) == len(drawn.conds) == 2
    assert drawn.conds[0].shape == (1, config.vae.latent_channels, 16, 16)
    assert drawn.clean.shape[2:] == torch.Size(drawn.batches[0].grid)
    large = noise(1, 3, 256, 256).sigmoid()
    block = drawn.batches[0].conds[0]
    grid = block.vit.height, block.vit.width
    side = [rows * config.vit.patch_size for rows in grid]
    small = torch.nn.functional.interpolate(large, side, mode="bilinear", antialias=True)
    one, other = (transformer.vision_patches(p, grid, config) for p in (large, small))
    assert torch.equal(one, other)


def test_a_drawing_process_gets_little_and_makes_the_rest_itself(folder: Path, config: CheckpointConfig) -> None:
    """More than a pipe holds would make each process that is started wait for the one before."""
    sequences = Sequences(folder, config, copies=1, dropout=0.0)
    packed = pickle.dumps(sequences)
    assert len(packed) < 65_536
    there, here = (next(iter(Stream(s, Draws(), 4, seed=3)))[0] for s in (pickle.loads(packed), sequences))
    assert torch.equal(there.prefix, here.prefix)
    assert torch.equal(there.words, here.words)
    assert there.conds == here.conds


def test_pictures_serve_again_in_other_words(
    folder: Path, config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn for the first wording must be right for the others."""
    monkeypatch.setattr(wordings, "_LONGEST", {"en": 40, "zh": 14})  # this folder's tokenizer makes many tokens
    first, *others = next(iter(Stream(Sequences(folder, config, 1), Draws(), 8, seed=2, wordings=3)))
    assert len(others) == 2
    for other in others:
        assert [r.task for r in other.requests] == [r.task for r in first.requests]
        assert sum(a.prompt != b.prompt for a, b in zip(first.requests, other.requests, strict=True)) >= 6
        assert (other.size, other.grid, other.conds) == (first.size, first.grid, first.conds)


def test_the_pool_hands_out_each_batch_once_and_keeps_those_of_a_drawing_apart(
    folder: Path, config: CheckpointConfig, archive: Path, trained: Path
) -> None:
    stream = Stream(Sequences(folder, config, 1), OneFamily(), 1, seed=5, wordings=4)
    drawn = Drawn.unpacked(next(iter(DrawnStream(stream, archive, trained, CPU))), CPU)
    marked = (replace(drawn, clean=torch.full_like(drawn.clean, number)).packed() for number in range(9))
    pool = Pool(marked, CPU, least=12, seed=3)
    taken = [pool.take() for _ in range(24)]
    pool.close()
    numbers = [int(one.clean.mean()) for one, _ in taken]
    assert max(map(numbers.count, numbers)) <= 4
    assert len({(number, id(batch)) for number, (_, batch) in zip(numbers, taken, strict=True)}) == 24
    assert sum(one == other for one, other in pairwise(numbers)) < 10  # in order it would be 18


def test_a_drawing_that_fails_ends_the_training() -> None:
    def failing():
        raise ValueError("no such picture")
        yield b""

    pool = Pool(failing(), CPU, least=1, seed=0)
    with pytest.raises(ValueError, match="no such picture"):
        pool.take()
    pool.close()


@pytest.mark.slow
def test_a_slice_of_training_with_a_drawing_process_and_one_that_goes_on_from_its_folder(
    folder: Path, config: CheckpointConfig, archive: Path, trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    # Sizes come from the tokenizer and the constants; the autoencoder is this test's narrow one.
    monkeypatch.setattr("scripts.demo.sizes.model_config", lambda *_: _raw(folder))
    monkeypatch.setattr("scripts.demo.sensitivity.PICTURES", 1)
    train_transformer(_arguments("transformer", folder, archive, trained), Plan(steps=2, until=math.inf, count=1))
    told = capsys.readouterr().out
    assert "transformer 2/2" in told
    assert "ms for pictures" in told
    kept = state.load(trained, "transformer")
    assert kept is not None
    assert kept["step"] == 2

    out, vae = tmp_path / "exported", drawing.autoencoder_of(config, trained, CPU)
    _export(folder, config, vae, kept["average"], out)
    resume.main([str(out), "--state", str(tmp_path / "state")])
    again, encoder = (state.load(tmp_path / "state", part) for part in ("transformer", "autoencoder_average"))
    assert again is not None
    assert encoder is not None
    assert again["step"] == 0
    for name, value in kept["average"].items():
        assert torch.equal(again["average"][name], value), name
    for name, value in vae.state_dict().items():
        assert torch.equal(encoder["weights"][name], value.half()), name
    assert (encoder["scaling"], encoder["shift"]) == (0.7, 0.1)


@pytest.mark.slow
def test_the_decoder_learns_alone_in_slices_and_anew_for_another_transformer(
    folder: Path, config: CheckpointConfig, archive: Path, trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("scripts.demo.sizes.model_config", lambda *_: _raw(folder))
    monkeypatch.setattr("scripts.demo.decoder.FAR", math.inf)  # a network at its start is far off
    shutil.copytree(trained, tmp_path / "state", ignore=lambda _, names: [n for n in names if "transformer" in n])
    model, _ = transformer.build(config, seed=0)
    average = {name: p for name, p in model.named_parameters() if not name.startswith("vae.")}
    args = _arguments("decoder", folder, archive, tmp_path / "state")
    kept = [state.load(args.state, "autoencoder_average")]
    for at, steps in ((7, 1), (7, 3), (9, 1)):
        state.save(args.state, "transformer", {"step": at, "average": average})
        train_decoder(args, Plan(steps=steps, until=math.inf, count=1))
        kept.append(state.load(args.state, "autoencoder_average"))
        assert (kept[-1]["decoder_step"], kept[-1]["decoder_for"]) == (steps, at)
        assert (kept[-1]["scaling"], kept[-1]["shift"]) == (0.7, 0.1)
    told = capsys.readouterr().out
    assert all(f"decoder {progress} " in told for progress in ("1/1", "3/3"))
    assert "far off 0.0000" in told
    for before, after in pairwise(kept):
        for name, value in before["weights"].items():
            if name.startswith("encoder."):
                assert torch.equal(value, after["weights"][name]), name
            elif value.dim() == 4:  # a norm's weights of 1 change too little for fp16
                assert not torch.equal(value, after["weights"][name]), name


def _arguments(part: str, folder: Path, archive: Path, kept: Path) -> Namespace:
    return Namespace(
        part=part,
        count=1,
        device="cpu",
        state=kept,
        pack=archive,
        tokenizer=folder / "tokenizer.json",
        copies=1,
        wordings=2,
        workers=1,
        matrix_rate=1e-3,
        other_rate=1e-3,
    )


def _export(folder: Path, config: CheckpointConfig, vae: Vae, average: dict[str, torch.Tensor], out: Path) -> None:
    """A checkpoint in `out` of these weights, with the small files of `folder`."""
    model, _ = transformer.build(config, seed=0)
    model.vae.load_state_dict(vae.state_dict())
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in average.items():
            names[name].copy_(value)
    out.mkdir()
    for small in folder.iterdir():
        (out / small.name).write_bytes(small.read_bytes())
    tiny.write_weights(out, tiny.as_stored(official_weights(model, config), config, torch.float32))


def _raw(folder: Path) -> dict:
    import json

    return json.loads((folder / "config.json").read_text())
