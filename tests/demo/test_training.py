"""The trainers: a few steps lower the losses, and the trained network is the product's own, number for number."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import noise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan.checkpoint import tiny
from hunyuan.checkpoint.load import load_model
from hunyuan.formats.config import CheckpointConfig
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.prefill import Conditions, CondTokens, prefill
from hunyuan.generation.scheduler import Schedule
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.rope import Grid, positions_2d, rope_table
from hunyuan.model.vae import Vae
from hunyuan.prompt.images import vision_grid
from hunyuan.prompt.layout import Layout
from hunyuan.prompt.resolution import Size
from scripts.demo import autoencoder, sizes, transformer
from scripts.demo.export import official_weights
from scripts.demo.optimizer import Optimizer, as_matrices, groups_of, orthogonalized
from scripts.demo.sequences import TASKS, Batch, Sequences
from scripts.demo.tasks import UNKNOWN
from scripts.demo.training import Plan
from scripts.demo.transformer import Noisy, Trainee
from scripts.demo.wordings import Request

CPU = torch.device("cpu")


BLUE = Request(UNKNOWN, "make it blue", "en", 1, "Keep the photo", "Bright picture")
LONGER = Request(UNKNOWN, "make it blue and then darker", "en", 1, "Keep", "Picture with light")


def trainee(config: CheckpointConfig, count: int, copies: int) -> Trainee:
    """At its start, shaken so that nothing is zero."""
    model, operations = transformer.build(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vae."):
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return Trainee(model, operations, count, copies)


def packed(folder: Path, config: CheckpointConfig, requests: list[Request], sources: int) -> Batch:
    sequences = Sequences(folder, config, 2, dropout=0.0)
    return sequences.batch(random.Random(3), requests, sources, (208, 304), (208, 304), drop=0.0)


@pytest.mark.parametrize(
    "sources", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_trainers_velocity_is_the_products(
    folder: Path, config: CheckpointConfig, tmp_path: Path, sources: int
) -> None:
    """Whole sequences with several noisy copies against prefill and one denoising step with a cache."""
    requests = [BLUE, LONGER]
    batch, schedule, index = packed(folder, config, requests, sources), Schedule.create(12, 3.0), 5
    trained = trainee(config, count=2, copies=2)
    shape = (4, config.vae.latent_channels, 13, 19)
    pictures = [noise(2, 3, 208, 304, seed=i).sigmoid() for i in range(sources)]
    conds = [noise(2, *shape[1:], seed=10 + i) for i in range(sources)]
    sigma = schedule.sigmas[index].expand(4).contiguous()
    noisy = Noisy(noise(*shape, seed=20), sigma, noise(*shape, seed=21))
    with torch.no_grad():
        losses = trained.losses(batch, pictures, conds, noisy)
        assert torch.allclose(losses.velocity, (losses.predicted - noisy.wanted).square().mean((1, 2, 3)))

    product = _product(trained, config, folder, tmp_path)
    for sample in range(2):
        length = int(batch.length[sample])
        layout = _layout(folder, config, requests[sample], sources)
        assert layout.ids[:length] == batch.prefix[sample, :length].tolist()
        with torch.no_grad():
            conditions = _conditions(trained, product, [p[sample : sample + 1] for p in pictures], conds, sample)
            kv = KVCache.allocate(config, 1, len(layout), torch.float32, CPU)
            prefill(product, layout, layout.ids, conditions, (0, length), kv)
            denoiser = Denoiser(product, layout, layout.generated, kv, schedule, 1.0)
            for copy in (2 * sample, 2 * sample + 1):
                wanted = denoiser.predict(noisy.latents[copy : copy + 1], index)
                error = (losses.predicted[copy] - wanted[0]).norm() / wanted.norm()
                assert float(error) < 1e-4, (sample, copy)


def _product(trained: Trainee, config: CheckpointConfig, folder: Path, out: Path) -> HunyuanImage3:
    """The same weights, exported and loaded as the product does."""
    for small in folder.iterdir():
        (out / small.name).write_bytes(small.read_bytes())
    weights = official_weights(trained.model, config)
    tiny.write_weights(out, tiny.as_stored(weights, config, torch.float32))
    return load_model(out, config, CPU, torch.float32)


def _layout(folder: Path, config: CheckpointConfig, request: Request, sources: int) -> Layout:
    sequences = Sequences(folder, config, 2, dropout=0.0)
    shapes = [sequences.shape(208, 304)] * sources
    rng = random.Random(3)
    tasks = list(_tasks(rng, 2))
    task = tasks[0] if request == BLUE else tasks[1]
    return sequences.layout(request, shapes, sequences.bucket(208, 304), task)


def _tasks(rng: random.Random, count: int) -> Iterator[str]:
    """The tasks that `Sequences.batch` draws first."""
    for _ in range(count):
        yield rng.choices(list(TASKS), list(TASKS.values()))[0]


def _conditions(
    trained: Trainee, product: HunyuanImage3, pictures: list[Tensor], conds: list[Tensor], sample: int
) -> Conditions:
    if not pictures:
        return Conditions((), torch.empty(0))
    config, zero, tokens = trained.model.config, torch.zeros(1), []
    rows_columns = vision_grid(Size(304, 208), config.vit.patch_size, config.vit_processor.max_num_patches)
    for picture, cond in zip(pictures, conds, strict=True):
        patches = transformer.vision_patches(picture, rows_columns, config)
        mask = (torch.arange(patches.shape[1]) < math.prod(rows_columns))[None].int()
        vit = product.embed_vision(patches, torch.tensor([rows_columns]), mask)
        tokens.append(CondTokens(product.embed_latents(cond[sample : sample + 1], zero)[0], vit[0]))
    return Conditions(tuple(tokens), product.timestep_emb(zero))


def test_the_trained_autoencoder_is_the_products() -> None:
    config = sizes.vae_config(block_out_channels=[32] * 5, latent_channels=16)
    planar = autoencoder.build(config, seed=0)
    product = Vae(config)
    product.load_state_dict(autoencoder.product_weights(planar))
    pixels = noise(1, 3, 64, 96).clamp(-1, 1)
    with torch.no_grad():
        made, mean, logvar = autoencoder.reconstruct(planar, pixels, torch.zeros(1))
        posterior = product.encode(pixels)
        assert torch.allclose(mean, posterior.mean, atol=1e-4)
        assert torch.allclose(logvar, posterior.logvar, atol=1e-4)
        assert torch.allclose(made, product.decode(mean[:, :, 0]), atol=1e-4)


def test_an_error_of_the_velocity_counts_as_that_of_the_answer_it_leads_to() -> None:
    """An error e of the velocity at time t is one of t * e of the picture."""
    sigma = torch.tensor([1.0, 0.5, 0.25, 0.1])
    noisy = Noisy(noise(4, 1, 2, 2), sigma, noise(4, 1, 2, 2, seed=1))
    assert noisy.weight.tolist() == pytest.approx([1, 0.25, 0.0625, 0.01])
    error = 0.3 / sigma  # the same error of the picture
    losses = transformer.Losses(error.square(), noisy.weight, torch.zeros(()), torch.zeros(()), noisy.latents)
    assert losses.picture.tolist() == pytest.approx([0.09] * 4)
    assert losses.total.item() == pytest.approx(math.sqrt(0.09 + transformer.SMALL_ERROR))


def test_a_sample_far_off_does_not_drown_those_that_are_close() -> None:
    """The pull on an error of .3 is that on one of .03, or less than thrice; in a plain square ten times."""
    error = torch.tensor([0.3, 0.03, 0.003], requires_grad=True)
    losses = transformer.Losses(error.square(), torch.ones(3), torch.zeros(()), torch.zeros(()), torch.zeros(3))
    losses.root.backward()
    far, close, closest = error.grad.abs().tolist()  # type: ignore[union-attr]
    assert 1 < far / close < 3
    assert far / closest > 8  # what is right within a tenth of the noise is left alone


def test_before_its_first_guess_the_network_sees_noise_alone() -> None:
    clean = noise(8, 2, 3, 3)
    noisy = Noisy.draw(clean, 2)
    assert noisy.sigma.tolist() == [1.0] * 16
    assert torch.allclose(noisy.latents - noisy.wanted, clean.repeat_interleave(2, dim=0), atol=1e-6)


def test_later_times_lead_from_the_networks_guess_to_the_right_answer() -> None:
    torch.manual_seed(0)
    clean, guess = noise(200, 2, 3, 3), noise(200, 2, 3, 3, seed=1)
    noisy = Noisy.draw(clean, 1, guess)
    late = noisy.sigma < 1
    assert 60 < int(late.sum()) < 140
    s = noisy.sigma[:, None, None, None]
    added = (noisy.latents - (1 - s) * guess) / s  # noise alone is left
    assert abs(float(added.std()) - 1) < 0.05
    assert abs(float(added.mean())) < 0.05
    assert torch.allclose(noisy.latents - s * noisy.wanted, clean, atol=1e-5)
    assert torch.allclose(noisy.answer(noisy.wanted, 1), clean, atol=1e-5)


def test_the_guess_is_each_samples_first_answer() -> None:
    clean = noise(3, 2, 2, 2)
    noisy = Noisy.draw(clean, 2, noise(3, 2, 2, 2, seed=1))
    wanted = noisy.wanted.clone().requires_grad_()
    wanted.data[1::2] += 1  # the second copies' go astray
    guess = noisy.answer(wanted, 2)
    assert not guess.requires_grad
    assert torch.allclose(guess, clean, atol=1e-5)


class Given(TorchDispatchMode):
    """Notes operations by which a GPU gets numbers from Python, or Python from a GPU: each waits for the other."""

    WAITING = ("aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in self.WAITING:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_step_of_a_known_kind_keeps_no_gpu_waiting(folder: Path, config: CheckpointConfig) -> None:
    batch, trained = packed(folder, config, [BLUE] * 2, 1), trainee(config, 2, 1)
    picture, cond = noise(2, 3, 208, 304).sigmoid(), noise(2, config.vae.latent_channels, 13, 19)
    found = []
    for _ in range(2):
        with Given() as given:
            noisy = Noisy.draw(cond, 1, cond)
            losses = trained.losses(batch, [picture], [cond], noisy)
            losses.total.backward()
            noisy.answer(losses.predicted, 1)
        found.append(given.found)
    assert found[0]  # the kind's places
    assert not found[1]
    assert len(trained.kinds) == len(trained.rules) == 1


def test_a_samples_answer_stands_behind_its_own_prefix(folder: Path, config: CheckpointConfig) -> None:
    batch, trained = packed(folder, config, [BLUE, LONGER], 1), trainee(config, 2, 2)
    rule, places = trained.rule(batch)
    cos, sin = places.rope(batch.length)
    assert cos.shape == sin.shape == (2, rule.tokens, 1, config.attention_head_dim)
    block = batch.conds[0]
    for sample, length in enumerate(batch.length.tolist()):
        shown = positions_2d(0, rule.room, [block.vae, block.vit])
        painted = positions_2d(length, length + rule.stretch, [Grid(length + 1, *batch.grid)])
        positions = torch.cat([shown, painted, painted])
        wanted = rope_table(positions, config.attention_head_dim, config.rope_theta)
        assert torch.equal(cos[sample, :, 0], wanted[0])
        assert torch.equal(sin[sample, :, 0], wanted[1])


@pytest.mark.slow
def test_steps_of_the_transformer_lower_its_loss(folder: Path, config: CheckpointConfig) -> None:
    batch = packed(folder, config, [BLUE] * 2, 1)
    model, operations = transformer.build(config, seed=0)
    trained = Trainee(model, operations, 2, 1)
    optimizer = Optimizer(*transformer.matrices_and_others(model), matrix_rate=2e-3, other_rate=1e-3)
    picture, cond = noise(2, 3, 208, 304).sigmoid(), noise(2, config.vae.latent_channels, 13, 19)
    noisy = Noisy.draw(cond, 1)
    found = []
    for _ in range(5):
        losses = trained.losses(batch, [picture], [cond], noisy)
        losses.total.backward()
        optimizer.step(1.0)
        found.append((losses.velocity.mean().item(), losses.text.item()))
    assert found[-1][0] < 0.9 * found[0][0], found
    assert found[-1][1] < 0.9 * found[0][1], found


@pytest.mark.slow
def test_steps_of_the_autoencoder_lower_its_loss() -> None:
    config = sizes.vae_config(block_out_channels=[32] * 5, latent_channels=16)
    vae = autoencoder.build(config, seed=0)
    optimizer = Optimizer(*autoencoder.matrices_and_others(vae), matrix_rate=2e-3, other_rate=1e-3)
    pixels = torch.nn.functional.interpolate(noise(2, 3, 8, 8), size=(64, 64), mode="bilinear").clamp(-1, 1)
    latent = noise(*autoencoder.latent_shape(config, pixels))
    found = []
    for _ in range(12):
        total, _ = autoencoder.loss(vae, pixels, latent)
        total.backward()
        optimizer.step(1.0)
        found.append(total.item())
    assert found[-1] < 0.75 * found[0], found


def test_the_rate_warms_up_and_falls_towards_the_last_step() -> None:
    plan = Plan(steps=1000, until=math.inf, count=1, warm=10)
    factors = [plan.factor(step, step, 0.0) for step in (0, 100, 500, 800, 1000)]
    assert factors == [pytest.approx(f) for f in (0.1, 1.0, 1.0, 0.2 / 0.45, 0.0)]
    assert plan.factor(500, 4, 0.0) == pytest.approx(0.5)  # after a break it warms up again


def test_the_part_in_which_the_rate_falls_can_be_chosen() -> None:
    plan = Plan(steps=1000, until=math.inf, count=1, warm=1, falling=0.8)
    assert [plan.factor(step, 5, 0.0) for step in (200, 600)] == [pytest.approx(f) for f in (1.0, 0.5)]


def test_in_the_last_slice_the_rate_falls_with_the_time() -> None:
    now = time.monotonic()
    plan = Plan(steps=1000, until=now + 10, count=1, last=True, warm=1)
    assert plan.factor(0, 5, now - 90) == pytest.approx(0.1 / 0.45, abs=0.01)
    assert replace(plan, last=False).factor(0, 5, now - 90) == 1.0


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 8, 20), (3, 20, 8)):
        values = torch.linalg.svdvals(orthogonalized(noise(*shape)))
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_small_stacks_of_matrices_are_filled_up_but_many_are_not() -> None:
    shapes = [(8, 64, 64), (55, 128, 256), (62, 256, 256), (1, 256, 2304), (6, 256, 1024)]
    assert groups_of(shapes) == [[3, 4], [2, 1, 0]]
    assert groups_of([(500, 64, 64), (1, 256, 256), (1, 128, 512)]) == [[1], [2], [0]]


def test_a_matrix_steps_along_its_own_orthogonalized_momentum() -> None:
    """Though tall ones, kernels and stacks are orthogonalized together, filled up to one shape."""
    shapes = [(8, 20), (20, 8), (3, 4, 4), (4, 2, 3, 3), (8, 20), (5, 30)]
    matrices = [torch.nn.Parameter(noise(*shape, seed=i)) for i, shape in enumerate(shapes)]
    other = torch.nn.Parameter(noise(3))
    starts = [m.detach().clone() for m in matrices]
    optimizer = Optimizer(matrices, [other], matrix_rate=0.1, other_rate=0.1, decay=0.5, momentum=0.9)
    assert len(optimizer.matrices.groups) < len(shapes) - 1
    momenta = [torch.zeros_like(m) for m in matrices]
    for step in range(2):
        for i, (matrix, start) in enumerate(zip(matrices, starts, strict=True)):
            gradient = noise(*matrix.shape, seed=20 + 10 * step + i)
            matrix.grad = gradient.clone()
            momenta[i] = 0.9 * momenta[i] + 0.1 * gradient
            ahead = as_matrices(0.1 * gradient + 0.9 * momenta[i])
            update = orthogonalized(ahead) * 0.2 * max(ahead.shape[1:]) ** 0.5
            starts[i] = start * (1 - 0.5 * 0.05) - 0.05 * update.view(start.shape)
        other.grad = noise(3)
        optimizer.step(0.5)
        for matrix, wanted in zip(matrices, starts, strict=True):
            assert matrix.grad is None
            assert torch.allclose(matrix, wanted, atol=1e-5)
