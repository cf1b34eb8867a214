"""Second moments from few requests: exact where requests agree, without correlations where they say nothing."""

from __future__ import annotations

import pytest
import torch
from small_model import noise
from torch import Tensor

from hunyuan.calibration.moments import shrunk_moments


def requests(count: int, each: int) -> Tensor:
    return torch.arange(count).repeat_interleave(each)


def test_requests_that_agree_are_believed():
    part = noise(30, 16)
    x, w = part.repeat(5, 1), torch.rand(30, generator=torch.Generator().manual_seed(0)).repeat(5)
    y = x * w[:, None]
    assert torch.allclose(shrunk_moments(x, w, requests(5, 30)), y.T @ y / len(x), atol=1e-5)


def test_the_diagonal_is_always_kept():
    x, w = noise(60, 16), torch.ones(60)
    found = shrunk_moments(x, w, requests(6, 10))
    assert torch.allclose(found.diagonal(), x.square().mean(0), rtol=1e-4)


def test_chance_is_taken_away():
    """Independent columns, each request's tokens alike: the sample's correlations are chance."""
    x = noise(20, 32).repeat_interleave(50, 0) + 0.1 * noise(1000, 32, seed=1)
    found = shrunk_moments(x, torch.ones(1000), requests(20, 50))
    apart, sample = found - torch.diag(found.diagonal()), x.T @ x / 1000
    assert float(apart.norm()) < 0.3 * float((sample - torch.diag(sample.diagonal())).norm())


def test_a_real_correlation_stays():
    shared = noise(2000, 1)
    x = shared + 0.5 * noise(2000, 32, seed=1)
    found = shrunk_moments(x, torch.ones(2000), requests(20, 100))
    assert float(found[0, 1:].mean()) == pytest.approx(float((x.T @ x / 2000)[0, 1:].mean()), rel=0.05)


def test_one_request_says_nothing_of_others_and_none_says_nothing():
    x = noise(50, 8)
    found = shrunk_moments(x, torch.ones(50), requests(1, 50))
    assert torch.equal(found, torch.diag(found.diagonal()))
    assert not shrunk_moments(x[:0], torch.ones(0), requests(0, 1)).any()
