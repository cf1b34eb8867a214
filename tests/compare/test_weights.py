"""`hunyuan compare`: the measures against published formulas, and two tiny checkpoints side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hunyuan import Editor, Settings
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.checkpoint.tiny_tokenizer import SCRIPT_COT_TEXT
from hunyuan.cli.compare import BUILT_IN, build_cases
from hunyuan.cli.main import build_parser, main
from hunyuan.compare import picture_metrics as metrics
from hunyuan.compare import weights
from hunyuan.compare.sample_photos import photo
from hunyuan.compare.weight_error import weight_error
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.job import EditJob
from hunyuan.generation.step_cache import TaylorCache
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.vae import Posterior


def flat(value: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


# --- measures


def test_psnr_of_known_errors():
    assert metrics.psnr(flat(100), flat(100)) == math.inf
    assert metrics.psnr(flat(0), flat(255)) == pytest.approx(0)
    assert metrics.psnr(flat(100), flat(101)) == pytest.approx(20 * math.log10(255))
    one_channel = Image.new("RGB", (20, 16), (103, 100, 100))
    assert metrics.psnr(flat(100), one_channel) == pytest.approx(10 * math.log10(255**2 / 3))


def test_ssim_of_equal_and_of_flat_pictures():
    assert metrics.ssim(photo(40, 30), photo(40, 30)) == pytest.approx(1)
    # Without variance only the term of the means is left.
    c1 = (0.01 * 255) ** 2
    for a, b in ((50, 200), (0, 255), (120, 121)):
        assert metrics.ssim(flat(a), flat(b)) == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), abs=1e-6)


def test_ssim_of_a_negative_is_negative():
    picture = photo(40, 30, grain=40)
    negative = picture.point(lambda value: 255 - value)
    assert metrics.ssim(picture, negative) < 0


def test_ssim_is_the_mean_over_windows():
    """The definition, window by window with two-dimensional weights."""
    a, b = photo(19, 15, seed=1), photo(19, 15, seed=2)
    x, y = (np.asarray(p, dtype=float) @ np.array([0.299, 0.587, 0.114]) for p in (a, b))
    offset = np.arange(11) - 5
    weights = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for top in range(15 - 10):
        for left in range(19 - 10):
            u, v = (z[top : top + 11, left : left + 11] for z in (x, y))
            mean_u, mean_v = (weights * u).sum(), (weights * v).sum()
            var_u, var_v = (weights * (u - mean_u) ** 2).sum(), (weights * (v - mean_v) ** 2).sum()
            cov = (weights * (u - mean_u) * (v - mean_v)).sum()
            structure = (2 * cov + c2) / (var_u + var_v + c2)
            values.append((2 * mean_u * mean_v + c1) / (mean_u**2 + mean_v**2 + c1) * structure)
    assert metrics.ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)


def test_more_noise_is_worse():
    clean = photo(64, 48, grain=0)
    worse = [photo(64, 48, grain=grain) for grain in (2, 8, 32)]
    for measure in (metrics.ssim, metrics.psnr):
        values = [measure(clean, noisy) for noisy in worse]
        assert values == sorted(values, reverse=True)


def test_pictures_that_cannot_be_compared():
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.psnr(flat(0), flat(0, (21, 16)))
    with pytest.raises(ValueError, match="11 px"):
        metrics.ssim(flat(0, (20, 10)), flat(0, (20, 10)))


def test_difference_is_amplified():
    assert metrics.difference(flat(100), flat(103)).getpixel((0, 0)) == (24, 24, 24)
    assert metrics.difference(flat(0), flat(255)).getpixel((0, 0)) == (255, 255, 255)
    assert metrics.largest_difference(flat(100), flat(97)) == 3


def test_contact_sheet_has_a_tile_for_each_picture():
    row = [("a prompt with ümlaut " * 9, None), ("A", flat(10, (800, 400))), ("B", flat(20))]
    sheet = metrics.contact_sheet([row, row])
    assert sheet.size == (8 + 3 * 392, 8 + 2 * 408)
    colours = {colour for _, colour in sheet.getcolors(2**20)}
    assert {(10, 10, 10), (20, 20, 20), (255, 255, 255)} <= colours


def test_relative_error_and_common_beginnings():
    assert weights.relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert weights.relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert weights.equal_before_parting([1, 2, 3], [1, 2, 4, 5]) == 2
    assert weights.equal_before_parting([1, 2], [1, 2, 4]) == 2


# --- two checkpoints


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in 32 bits and rounded to 16, and other ones."""
    out = tmp_path_factory.mktemp("folders")
    kinds = {"exact": (0, "float32"), "rounded": (0, "bfloat16"), "other": (1, "float32")}
    return {name: write_tiny_checkpoint(out / name, seed=s, dtype=dtype) for name, (s, dtype) in kinds.items()}


@pytest.fixture(autouse=True)
def _quick_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder is most of a tiny edit's time."""

    def encode(self: HunyuanImage3, pixels: Tensor) -> Posterior:
        mean = torch.nn.functional.avg_pool2d(pixels, 16)[:, :1, None].expand(-1, 8, -1, -1, -1)
        return Posterior(mean, torch.zeros_like(mean))

    def decode(self: HunyuanImage3, latents: Tensor) -> Tensor:
        return torch.tanh(latents[:, :3]).repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)

    monkeypatch.setattr(HunyuanImage3, "encode_image", encode)
    monkeypatch.setattr(HunyuanImage3, "decode_image", decode)


def run(tmp_path: Path, a: Path, b: Path, *options: str) -> list[dict]:
    arguments = [str(a), str(b), "--device", "cpu", "--steps", "3", "--json", str(tmp_path / "out.json"), *options]
    assert main(["compare", *arguments]) == 0
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.slow
def test_a_checkpoint_is_equal_to_itself(folders, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    numbers = run(
        tmp_path, folders["exact"], folders["exact"], "--requests", "3", "--steps", "2", "--sheet", str(sheet)
    )
    assert len(numbers) == 3
    for entry in numbers:
        assert (entry["psnr_db"], entry["largest_difference"]) == (None, 0)
        assert entry["ssim"] == pytest.approx(1)
        assert entry["velocity_error"] == [0, 0]
        assert entry["text_equal_before_parting"] == entry["text_tokens"] > 10
        assert entry["text_forced_share"] == 1
    shown = capsys.readouterr().out
    assert shown.count("equal") == 4  # the summary too
    assert BUILT_IN[2][0][:40] in shown
    with Image.open(sheet) as picture:
        assert picture.size == (8 + 4 * 392, 8 + 3 * 408)


@pytest.mark.slow
def test_rounding_is_seen_and_stays_small(folders, tmp_path, capsys):
    (entry,) = run(tmp_path, folders["exact"], folders["rounded"], "--requests", "1")
    assert 0 < max(entry["velocity_error"]) < 0.1
    assert len(entry["velocity_error"]) == 3
    assert 20 < entry["psnr_db"] < 90
    assert 0.8 < entry["ssim"] < 1
    assert entry["text_equal_before_parting"] == entry["text_tokens"]
    assert f"{entry['psnr_db']:.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_other_weights_are_far_off(folders, tmp_path):
    (entry,) = run(tmp_path, folders["exact"], folders["other"], "--requests", "1")
    assert min(entry["velocity_error"]) > 0.5
    assert entry["psnr_db"] < 20


def test_velocity_is_compared_at_the_reference_s_latents(folders):
    """B's own latents part from A's; its error at each step is that of a run on A's."""
    cases = build_cases(parse("--requests", "1", "--steps", "2", "--bot-task", "image"))
    a, b = (editor(folders[name]) for name in ("exact", "rounded"))
    reference = weights.run_reference(a, cases[0])
    own = weights.run_reference(b, cases[0])
    comparison, painted = weights.run_compared(b, cases[0], reference)
    assert np.array_equal(painted.image, own.result.image)  # looking on changes nothing
    assert not torch.equal(reference.latents[1], own.latents[1])
    first, later = (weights.relative_error(own.velocities[i], reference.velocities[i]) for i in (0, 1))
    assert comparison.velocity_error[0] == first  # the same noise
    assert comparison.velocity_error[1] != later
    assert (comparison.text_tokens, comparison.text_forced_share) == (None, None)


def editor(folder: Path) -> Editor:
    return Editor.load(Settings(model_id=folder, device="cpu"))


def parse(*options: str):
    return build_parser("compare").parse_args(["compare", "a", "b", *options])


def test_likeliest_tokens_follow_the_script(folders):
    case = build_cases(parse("--requests", "1"))[0]
    text, likeliest = weights.likeliest_tokens(editor(folders["exact"]), case, SCRIPT_COT_TEXT)
    # The tokens behind the closing tags are forced by the engine, not said by the model.
    differing = [i for i, (said, token) in enumerate(zip(likeliest, text, strict=True)) if said != token]
    assert len(differing) <= 1
    assert len(text) == 15


def test_own_request(folders, tmp_path):
    path = tmp_path / "photo.png"
    photo(90, 60).save(path)
    options = ("--prompt", "Make it blue", "--image", str(path), "--bot-task", "image", "--steps", "1")
    (entry,) = run(tmp_path, folders["exact"], folders["rounded"], *options)
    assert entry["prompt"] == "Make it blue"
    assert entry["size"][0] / entry["size"][1] == pytest.approx(1.5, abs=0.05)
    assert entry["text_tokens"] is None


def test_it_says_what_it_does_and_takes_as_many_steps_as_a_does_by_itself(tmp_path, capsys):
    """A Distil folder's own default, and B does what A did."""
    distil = write_tiny_checkpoint(tmp_path / "distil", TinyShape(distil=True))
    plain = write_tiny_checkpoint(tmp_path / "plain")
    out = tmp_path / "out.json"
    options = ("--device", "cpu", "--requests", "1", "--bot-task", "image", "--json", str(out))
    assert main(["compare", str(distil), str(plain), *options]) == 0
    (entry,) = json.loads(out.read_text())
    assert len(entry["velocity_error"]) == 8
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("loading ", "A, ", "B, "))]
    assert shown == ["loading A", "A, request 1 of 1", "loading B", "B, request 1 of 1"]


def test_a_missing_photo_is_named(tmp_path, capsys):
    path, folder = tmp_path / "photo.jpg", str(write_tiny_checkpoint(tmp_path / "tiny"))
    assert main(["compare", folder, folder, "--prompt", "x", "--image", str(path)]) == 2
    assert f"{path}: No such file" in capsys.readouterr().err


def test_denoiser_is_itself_again_after_an_error():
    original = Denoiser.predict

    def broken() -> None:
        with weights.predicting(lambda predict: lambda *_: torch.empty(0)):
            assert Denoiser.predict is not original
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert Denoiser.predict is original


@pytest.mark.parametrize(
    ("options", "message"), [(["--image", "x.png"], "--image: needs --prompt"), (["--requests", "9"], "1 to 4")]
)
def test_wrong_options(capsys, options, message):
    assert main(["compare", "a", "b", *options]) == 2
    assert message in capsys.readouterr().err


def test_missing_folder_is_an_error_not_a_traceback(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "none"), str(tmp_path), "--requests", "1"]) == 2
    assert "error: MODEL_ID" in capsys.readouterr().err


TABLES = ("residual stream behind layer", "velocity at step")


@pytest.mark.slow
def test_many_candidates_one_reference(folders, tmp_path, capsys):
    exact, sheet = folders["exact"], tmp_path / "sheet.png"
    candidates = [f"{exact}@weights=fp8", f"{exact}@weights=4bit,name=four", f"{exact}@step_cache=taylor,interval=2"]
    candidates.append(f"{exact}@dtype=bfloat16,name=half")
    options = ("--requests", "1", "--bot-task", "image", "--steps", "6", "--sheet", str(sheet))
    out = tmp_path / "out.json"
    arguments = ["compare", str(exact), *candidates, "--device", "cpu", "--json", str(out), *options]
    assert main(arguments) == 0
    eight, four, cached, half = json.loads(out.read_text())
    assert [entry["candidate"] for entry in (four, cached)] == ["four", "exact@step_cache=taylor,interval=2"]
    assert 0.02 < eight["weight_error"] < 0.03
    assert 0.1 < four["weight_error"] < 0.13
    assert (cached["weight_error"], half["weight_error"]) == (0, 0)
    assert 0 < max(half["velocity_error"]) < 0.1
    assert [entry["full_steps"] for entry in (four, cached)] == [6, 5]  # steps 0, 1, 2, 4 and 5
    assert len(four["layer_error"]) == 2
    assert eight["layer_error"][-1] < four["layer_error"][-1]
    assert cached["velocity_error"][:3] == [0, 0, 0]  # run in full
    assert max(cached["velocity_error"][3:]) > 0
    shown = capsys.readouterr()
    assert shown.err.count("A, request 1 of 1") == 1
    assert "| four | 6 | 0.1" in shown.out
    names = "fp8 | four | exact@step_cache=taylor,interval=2 | half"
    layers, steps = (shown.out.split(f"| {what} | exact@weights={names} |\n")[1] for what in TABLES)
    assert f"| 1 | {eight['layer_error'][1]:.4f} | {four['layer_error'][1]:.4f} |" in layers
    assert f"| 5 | {eight['velocity_error'][5]:.4f} | {four['velocity_error'][5]:.4f} |" in steps
    with Image.open(sheet) as picture:
        assert picture.size == (8 + 6 * 392, 8 + 408)


def test_the_weight_error_of_a_folder_is_its_report_s(folders, tmp_path):
    out = tmp_path / "4bit"
    report = quantize_folder(folders["exact"], out, QuantizeOptions())
    found = weight_error(folders["exact"], out, read_config(out))
    loaded = weight_error(folders["exact"], folders["exact"], read_config(out))
    assert found == pytest.approx(loaded)
    assert found == pytest.approx(np.mean([row["relative_error"] for row in report["layers"]]), rel=0.01)
    assert weight_error(out, out, read_config(out)) is None


def test_a_step_cache_is_given_back_after_an_error():
    original = EditJob.step_cache

    def broken() -> None:
        with weights.caching(TaylorCache):
            assert EditJob.step_cache is not original
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert EditJob.step_cache is original


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("b@strength=3", "unknown option strength"),
        ("b@step_cache=other", "step_cache must be one of taylor, spectrum"),
        ("b@step_cache=taylor,window=3", "taylor has no option window; it has interval"),
        ("b@step_cache=taylor,interval=x", "invalid literal"),
        ("b@weights=", "expected FOLDER@OPTION=VALUE"),
    ],
)
def test_wrong_candidates(tmp_path, capsys, candidate, message):
    folder = tmp_path / "a"
    folder.mkdir()
    assert main(["compare", str(folder), candidate.replace("b", str(folder), 1)]) == 2
    assert message in capsys.readouterr().err
