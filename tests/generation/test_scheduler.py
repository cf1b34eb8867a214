"""The flow-matching schedule and Euler step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hunyuan.generation.scheduler import Schedule, classifier_free_guidance


def test_recorded_tables(golden: Path) -> None:
    for table in json.loads((golden / "scheduler.json").read_text())["tables"]:
        schedule = Schedule.create(table["steps"], table["shift"])
        torch.testing.assert_close(schedule.sigmas, torch.tensor(table["sigmas"]), rtol=1e-6, atol=0)
        torch.testing.assert_close(schedule.timesteps, torch.tensor(table["timesteps_full"]), rtol=1e-6, atol=0)


def test_shift_moves_time_towards_noise() -> None:
    plain, shifted = (Schedule.create(8, shift).sigmas for shift in (1.0, 3.0))
    assert (shifted[1:-1] > plain[1:-1]).all()
    assert shifted[0] == 1
    assert shifted[-1] == 0


def test_steps_under_constant_velocity_travel_the_whole_way() -> None:
    schedule, x = Schedule.create(5, 3.0), torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)
    for i in range(schedule.steps):
        x = schedule.step(x, torch.full_like(x, 2.0), i)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.full((1, 2, 3, 3), -1.0))


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 3.0), (2.5, 6.0)])
def test_guidance_extrapolates_from_the_unconditional_row(scale: float, expected: float) -> None:
    assert classifier_free_guidance(torch.tensor([3.0]), torch.tensor([1.0]), scale).item() == expected


def test_the_clean_prediction_of_the_last_step_is_where_it_lands() -> None:
    schedule = Schedule.create(4, 3.0)
    latents, velocity = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    assert torch.equal(schedule.clean(latents, velocity, 3), schedule.step(latents, velocity, 3))


def test_the_clean_prediction_takes_all_noise_off_a_straight_path() -> None:
    schedule = Schedule.create(5, 2.0)
    clean, noise = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    for index in range(5):
        sigma = schedule.sigmas[index]
        mixed = (1 - sigma) * clean + sigma * noise
        torch.testing.assert_close(schedule.clean(mixed, noise - clean, index), clean)
