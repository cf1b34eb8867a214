"""scripts/benchmarks/profile_stages.py: the arithmetic of its tables, and a short run on a CPU."""

from __future__ import annotations

import re

import pytest
import torch

from scripts.benchmarks import profile_stages
from scripts.benchmarks.profile_stages import Kernel, Profile, Profiler, busy_us, group_of, lines_of, longest_gaps

SHORT = ["--device", "cpu", "--size", "256x256", "--prompt-tokens", "100", "--profile-tokens", "6", "--prepares", "2"]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("void tensorrt_llm::kernels::cutlass_kernels::expandInputRowsKernel<__nv_bfloat16>", "experts: copy of rows"),
        ("void tensorrt_llm::kernels::cutlass_kernels::doActivationKernel<float>", "experts: SwiGLU and quantize"),
        ("void tensorrt_llm::kernels::cutlass_kernels::finalizeMoeRoutingKernel<float>", "experts: weighted sum"),
        (
            "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<1>>>",
            "experts: products",
        ),
        ("void flashinfer::PrefillWithKVCacheKernel<1>", "attention"),
        ("nvjet_qqtst_128x256_128x4_2x1_v_bz_TNT", "dense layers"),
        ("gate_and_up_mxfp4", "experts, few tokens: gate and up"),
        ("down_mxfp4", "experts, few tokens: down"),
        ("gate_and_up", "experts, few tokens: gate and up"),
        ("down", "experts, few tokens: down"),
        ("add_parts", "experts, few tokens: down"),
        ("_project_kernel", "dense layers, one token"),
        ("_space_to_depth_kernel", "autoencoder"),
        ("_affine_kernel", "autoencoder"),
        ("_swiglu_kernel", "norms, rope, SwiGLU, quantize"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("Memcpy HtoD (Pageable -> Device)", "copies and fills"),
        ("void at::native::vectorized_elementwise_kernel<4>", profile_stages.REST),
    ],
)
def test_kernels_are_grouped_by_name(name: str, group: str) -> None:
    assert group_of(name).startswith(group)


KERNELS = [Kernel("a", 0, 10), Kernel("b", 5, 20), Kernel("c", 6, 8), Kernel("a", 50, 60), Kernel("b", 65, 70)]


def test_what_runs_at_once_is_busy_once() -> None:
    assert busy_us(KERNELS) == busy_us(KERNELS[::-1]) == 20 + 10 + 5
    assert busy_us([]) == 0


def test_gaps_lie_between_the_kernel_that_ended_last_and_the_next() -> None:
    assert longest_gaps(KERNELS, 9) == [(30, "b", "a"), (5, "a", "b")]
    assert longest_gaps(KERNELS, 1) == [(30, "b", "a")]


def test_a_table_is_of_one_unit() -> None:
    head, *lines = lines_of(Profile("a step", KERNELS, 100e-6, units=2), top=1)
    assert head == "== a step: 0.050 ms, busy 0.018, gaps 0.033; 2 kernels"
    assert lines[0].split() == ["0.021", "ms", "42.0", "%", "2.5", "calls", "the", "rest"]
    assert [line for line in lines if "gap" in line] == ["     gap 0.030 ms between b and a"]


def test_parts_of_one_name_are_put_together_without_the_time_between() -> None:
    profiler = Profiler(torch.device("cpu"))
    assert profiler.taken == []
    for _ in range(2):
        with profiler.part("x", lambda: 3):
            torch.ones(4).sum()
    (both,) = profiler.summed()
    first, second = profiler.taken
    assert both.units == 6
    assert both.seconds == first.seconds + second.seconds
    assert len(both.kernels) == len(first.kernels) + len(second.kernels) > 2
    assert busy_us(both.kernels) == pytest.approx(busy_us(first.kernels) + busy_us(second.kernels), abs=0.01)


def test_options_of_whole_edits_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--check"], ["--launches"], ["--profile-steps", "0"]):
        with pytest.raises(SystemExit):
            profile_stages.parse(["--device", "cpu", *wrong])
        assert "--profile-steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_run_shows_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile_stages.main(SHORT) == 0
    shown = capsys.readouterr().out
    for stage in ("prepare", "prefill", "a token", "a step", "autoencoder"):
        assert re.search(rf"^== {stage}: \d+\.\d+ ms, busy \d+\.\d+, gaps ", shown, re.M), stage
    for _, part in profile_stages.HOST_PARTS:
        found = re.search(rf"^ +(\d+\.\d+) +(\d+\.\d+) +(\d+\.\d+) ms +1 calls  {part}$", shown, re.M)
        assert found, part
        median, least, most = map(float, found.groups())
        assert 0 < least <= median <= most
