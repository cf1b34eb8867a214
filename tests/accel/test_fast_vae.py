"""The autoencoder's fast form: equal to the plain one, in fp32, and honest about dtypes, memory and weights."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_model import model_config, noise, randomized, raw_config
from torch import Tensor, nn
from torch.nn.functional import conv3d, group_norm, silu
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan.accel.vae import fast_vae, frame_conv, frame_operations
from hunyuan.accel.vae.fast_vae import FastVae, use_fast_vae
from hunyuan.accel.vae.frame_conv import FrameConv, Frames, RepeatedFrameConv, fold, plan
from hunyuan.errors import HunyuanError
from hunyuan.model.vae import Vae

ROOT = Path(__file__).parents[2]
SMALL = {"block_out_channels": [32, 64, 64], "ffactor_spatial": 4, "ffactor_temporal": 2, "latent_channels": 4}
REAL = {"block_out_channels": [128, 256, 512, 1024, 1024], "latent_channels": 32, "layers_per_block": 2}


def plain_vae(**changes: Any) -> Vae:
    return randomized(Vae(model_config(vae={**raw_config()["vae"], **changes}).vae))


@pytest.fixture(scope="module")
def small() -> Vae:
    return plain_vae(**SMALL)


def frames_of(x: Tensor) -> Frames:
    """`[1, c, t, h, w]` as frames with their channels fastest."""
    tensors = {t: x[:, :, t].contiguous(memory_format=torch.channels_last) for t in range(x.shape[2])}
    return Frames(tensors, sum(frame_operations.channel_sums(frame) for frame in tensors.values()))


def close(ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= bound * theirs.norm()


# --- one convolution


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("together", [None, 1, 2, 3])
@torch.no_grad()
def test_convolution_over_frames_is_the_3d_one(frames, together):
    conv = randomized(nn.Conv3d(6, 5, 3, padding=1))
    x = noise(1, 6, frames, 4, 3)
    fast, expected = FrameConv(conv, frames, torch.float32, together=together), conv(x)
    made = fast.all_frames(frames_of(x), None)
    assert sorted(made.tensors) == list(range(frames))
    for t, frame in made.tensors.items():
        torch.testing.assert_close(frame + made.offset[:, None, None], expected[:, :, t])


@torch.no_grad()
def test_convolution_reads_what_the_norm_makes_of_all_frames():
    conv, norm = randomized(nn.Conv3d(64, 8, 3, padding=1)), randomized(nn.GroupNorm(32, 64, eps=1e-6))
    x, bias = noise(1, 64, 4, 3, 2) + 2, noise(64, seed=1)
    shifted = x + bias[:, None, None, None]
    expected = conv3d(silu(group_norm(shifted, 32, norm.weight, norm.bias, 1e-6)), conv.weight, conv.bias, padding=1)
    given = frames_of(x)
    given.offset = bias
    made = FrameConv(conv, 4, torch.float32).all_frames(given, frame_conv.FrameNorm(norm))
    for t, frame in made.tensors.items():
        torch.testing.assert_close(frame + made.offset[:, None, None], expected[:, :, t])


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@torch.no_grad()
def test_convolution_over_a_repeated_picture(frames):
    conv, picture = randomized(nn.Conv3d(3, 5, 3, padding=1)), noise(1, 3, 4, 6)
    made = RepeatedFrameConv(conv, frames, torch.float32)(picture)
    expected = conv(picture[:, :, None].expand(-1, -1, frames, -1, -1))
    for t, frame in made.tensors.items():
        torch.testing.assert_close(frame, expected[:, :, t])
    assert len({frame.untyped_storage().data_ptr() for frame in made.tensors.values()}) == frames


def test_no_call_multiplies_padding_or_frames_out_of_reach():
    weight = torch.ones(8, 8, 3, 3, 3)
    for frames, together, used in ((1, 1, 1), (2, 2, 4), (3, 1, 7), (4, 1, 10)):
        calls, patterns = plan(frames, range(frames), together)
        kernels = [fold(weight, *pattern) for pattern in patterns]
        assert all(kernel.all() for kernel in kernels)
        assert sum(kernels[call.kernel].numel() for call in calls) == used * 8 * 8 * 9


def test_frames_are_released_once_nobody_needs_them():
    calls, _ = plan(4, range(4), 1)
    assert [call.released for call in calls] == [(), (0,), (1,), (2, 3)]
    fast = FrameConv(randomized(nn.Conv3d(8, 8, 3, padding=1)), 4, torch.float32)
    given = frames_of(noise(1, 8, 4, 2, 2))
    affine = torch.ones(8), torch.zeros(8)
    left = []
    for call in fast.calls:
        fast(given, call, affine, release=True)
        left.append(sorted(given.tensors))
    assert left == [[0, 1, 2, 3], [1, 2, 3], [2, 3], []]


# --- the whole


@pytest.mark.parametrize(
    ("changes", "n", "height", "width"),
    [
        ({}, 1, 2, 3),
        ({}, 2, 3, 1),
        (SMALL, 2, 5, 3),
        ({**SMALL, "block_out_channels": [32, 64, 128], "layers_per_block": 2}, 1, 4, 7),
        ({**SMALL, "ffactor_spatial": 2, "ffactor_temporal": 1}, 1, 3, 4),
        ({**SMALL, "ffactor_temporal": 4}, 1, 3, 2),
        ({**SMALL, "ffactor_spatial": 8, "ffactor_temporal": 8, "block_out_channels": [32, 64, 32, 64]}, 1, 2, 2),
    ],
)
@torch.no_grad()
def test_fast_is_plain_in_fp32(changes, n, height, width):
    plain = plain_vae(**changes)
    fast, factor = FastVae(plain, torch.float32), plain.config.ffactor_spatial
    z, pixels = noise(n, plain.config.latent_channels, height, width), noise(n, 3, factor * height, factor * width)
    close(fast.decode(z), plain.decode(z))
    for ours, theirs in zip(fast.encode(pixels), plain.encode(pixels), strict=True):
        close(ours, theirs)
    assert torch.equal(fast.scale(z), plain.scale(z))
    assert torch.equal(fast.unscale(z), plain.unscale(z))


@torch.no_grad()
def test_blocks_that_change_their_width_have_a_shortcut():
    plain = randomized(fast_vae.ResnetBlock(32, 64))
    x = noise(1, 32, 2, 3, 4)
    made = fast_vae.FastResnetBlock(plain, 2, torch.float32)(frames_of(x))
    expected = plain(x)
    for t, frame in made.tensors.items():
        torch.testing.assert_close(frame, expected[:, :, t])
    torch.testing.assert_close(made.sums, frames_of(expected).sums, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_recorded_picture_and_posterior(golden, golden_editor):
    recorded = load_file(golden / "vae.safetensors")
    fast = FastVae(golden_editor.engine.checkpoint.model.vae, torch.float32)
    decoded = fast.decode(recorded["decode_in"][:, :, 0])
    torch.testing.assert_close(decoded[:, :, None], recorded["decode_out"], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_recorded_posterior(golden, golden_editor, monkeypatch):
    from scripts import check_goldens
    from scripts.goldens.folder import Golden

    golden_run = Golden(golden, "cpu")
    monkeypatch.setitem(golden_run.model._modules, "vae", FastVae(golden_run.model.vae, torch.float32))
    assert check_goldens.check_section(golden_run, "vae").failures == []


@torch.no_grad()
def test_inputs_are_left_as_they_are(small):
    fast, z, pixels = FastVae(small, torch.float32), noise(1, 4, 2, 2), noise(1, 3, 8, 8)
    kept = z.clone(), pixels.clone()
    first = fast.decode(z), fast.encode(pixels).mean
    assert torch.equal(z, kept[0])
    assert torch.equal(pixels, kept[1])
    assert torch.equal(first[0], fast.decode(z))
    assert torch.equal(first[1], fast.encode(pixels).mean)


# --- dtypes


@torch.no_grad()
def test_bf16_weights_compute_in_fp16_and_give_fp32(small):
    rounded = plain_vae(**SMALL).bfloat16()
    fast = FastVae(rounded, torch.float16)
    assert (fast.dtype, rounded.dtype) == (torch.float16, torch.bfloat16)
    exact, z, pixels = rounded.float(), noise(1, 4, 3, 2), noise(1, 3, 12, 8)
    decoded, posterior = fast.decode(z), fast.encode(pixels)
    assert decoded.dtype == posterior.mean.dtype == posterior.logvar.dtype == torch.float32
    close(decoded, exact.decode(z), 3e-3)
    close(posterior.mean, exact.encode(pixels).mean, 3e-3)
    assert {p.dtype for name, p in fast.named_parameters() if "norm" in name} == {torch.float32}


def test_what_is_not_finite_is_refused(small):
    fast = FastVae(small, torch.float32)
    with pytest.raises(HunyuanError, match="not finite"):
        fast.decode(torch.full((1, 4, 2, 2), torch.nan))
    posterior = fast.encode(torch.full((1, 3, 8, 8), torch.inf))
    with pytest.raises(HunyuanError, match="not finite"):
        posterior.sample(noise(1, 4, 1, 2, 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("channel", [1, 6])  # of 4 means and 4 variances
def test_one_bad_moment_is_refused(small, monkeypatch, value, channel):
    fast = FastVae(small, torch.float32)
    moments = noise(1, 8, 2, 2)
    moments[0, channel, 1, 0] = value
    monkeypatch.setattr(fast.encoder, "forward", lambda picture: moments)
    with pytest.raises(HunyuanError, match="not finite"):
        fast.encode(noise(1, 3, 8, 8)).sample(noise(1, 4, 1, 2, 2))


def test_large_moments_are_clamped_and_not_refused(small, monkeypatch):
    fast = FastVae(small, torch.float32)
    moments, draw = 1e4 * noise(1, 8, 2, 2), noise(1, 4, 1, 2, 2)
    monkeypatch.setattr(fast.encoder, "forward", lambda picture: moments)
    posterior = fast.encode(noise(1, 3, 8, 8))
    assert torch.equal(posterior.mean, moments[:, :4, None])
    assert torch.equal(posterior.logvar, moments[:, 4:, None].clamp(-30, 20))
    assert torch.equal(posterior.sample(draw), posterior.mean + (0.5 * posterior.logvar).exp() * draw)


def test_encoding_reads_nothing_back_from_its_device(small):
    """Reading would wait for a GPU, which can be given more work first; sampling reads."""
    fast = FastVae(small, torch.float32)
    with Reads() as reads:
        posterior = fast.encode(noise(1, 3, 8, 8))
    assert reads.count == 0
    with reads:
        posterior.sample(noise(1, 4, 1, 2, 2))
    assert reads.count == 1


class Reads(TorchDispatchMode):
    """Counts the values that Python asks of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_several_latent_frames_are_refused(small):
    fast = FastVae(small, torch.float32)
    with pytest.raises(ValueError, match=r"one frame each, not \(1, 4, 2, 2, 2\)"):
        fast.decode(noise(1, 4, 2, 2, 2))
    with pytest.raises(ValueError, match="pixels must be"):
        fast.encode(noise(1, 3, 2, 8, 8))


# --- its place in the network


def test_nothing_of_the_plain_form_is_left():
    plain = plain_vae(**SMALL)
    parts = [weakref.ref(parameter) for parameter in plain.parameters()]
    memory = {parameter.untyped_storage().data_ptr() for parameter in plain.parameters()}
    fast = FastVae(plain, torch.float32)
    assert memory.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in fast.parameters())
    assert not any(isinstance(module, nn.Conv3d) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert list(fast.buffers()) == []
    del plain
    assert all(part() is None for part in parts)


class Network(nn.Module):
    def __init__(self, device: str, vae: Vae) -> None:
        super().__init__()
        self.device, self.vae = torch.device(device), vae


def test_only_a_gpu_takes_the_fast_form(small):
    network = Network("cpu", small)
    use_fast_vae(network)
    assert network.vae is small


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float16), (torch.bfloat16, torch.float16), (torch.float32, torch.float32)],
)
def test_on_a_gpu_the_fast_form_takes_the_plain_ones_place(dtype, expected):
    network = Network("cuda", plain_vae(**SMALL).to(dtype))
    use_fast_vae(network)
    assert isinstance(network.vae, FastVae)
    assert network.vae.dtype == expected


# --- memory and kernels


class Held(TorchDispatchMode):
    """Adds up the bytes of all storages that are alive, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.see(tensor.untyped_storage())
        return out

    def see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.fixture
def no_arithmetic(monkeypatch):
    """The kernels' memory, which is none but what they return."""

    def sums(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.empty(2, x.shape[1], device=x.device)

    monkeypatch.setattr(frame_conv, "channel_sums", sums)
    monkeypatch.setattr(fast_vae, "add_residual", sums)
    monkeypatch.setattr(fast_vae, "depth_to_space", lambda y, bias, x, out, frame: sums(out))
    monkeypatch.setattr(fast_vae, "space_to_depth", lambda y, bias, x, out: sums(out))
    for module in (fast_vae, frame_conv):
        monkeypatch.setattr(module, "normalize", lambda *_, **__: None)


@torch.no_grad()
def test_memory_of_the_real_size(no_arithmetic):
    config = model_config(vae={**raw_config()["vae"], **REAL}).vae
    with torch.device("meta"):
        fast = FastVae(Vae(config).bfloat16(), torch.float16)
        z = torch.empty(1, 32, 64, 64, dtype=torch.float16)
        pixels = torch.empty(1, 3, 1024, 1024, dtype=torch.float16)
    for part, given, bound in ((fast.decoder, z, 2.8), (fast.encoder, pixels, 2.8)):
        with Held() as held:
            part(given)
        assert 1.5 < held.peak / 2**30 < bound


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is there for Linux only")
@pytest.mark.slow
def test_kernels_agree_with_the_plain_operations():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("frame_kernels_interpreted.py"))]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout.strip() == "kernels agree", ran.stderr


def test_the_script_that_measures_runs(capsys):
    from scripts.benchmarks import bench_vae

    bench_vae.main(["--device", "cpu", "--size", "32x16", "--repeat", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if " ms," in line] == [
        f"{what} {form}" for what in ("decode", "encode") for form in ("plain", "fast ")
    ]
