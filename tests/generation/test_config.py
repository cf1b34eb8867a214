"""Defaults of the checkpoint's generation config and what a request overrides."""

from __future__ import annotations

import pytest

from hunyuan import EditRequest
from hunyuan.errors import CheckpointError
from hunyuan.generation.config import GenerationConfig, Options

FULL = {
    "sequence_template": "instruct",
    "diff_guidance_scale": 2.5,
    "flow_shift": 3.0,
    "drop_think": True,
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 1024,
    "top_p": 0.95,
}


def test_missing_keys_are_named() -> None:
    with pytest.raises(CheckpointError, match="diff_guidance_scale: missing; flow_shift: missing"):
        GenerationConfig.from_dict({})


def test_a_value_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"generation_config.json: flow_shift: 'much', expected a valid number"):
        GenerationConfig.from_dict(FULL | {"flow_shift": "much"})


def test_what_null_means() -> None:
    config = GenerationConfig.from_dict(FULL | dict.fromkeys(("drop_think", "temperature", "top_k", "top_p")))
    assert (config.drop_think, config.temperature, config.top_k, config.top_p) == (False, 1.0, 0, 1.0)


def test_absent_template_and_drop_think() -> None:
    config = GenerationConfig.from_dict({"diff_guidance_scale": 5, "flow_shift": 3})
    assert (config.sequence_template, config.drop_think, config.do_sample) == ("pretrain", False, False)


def test_a_request_without_wishes_takes_the_checkpoints_values() -> None:
    options = Options.resolve(EditRequest("x"), GenerationConfig.from_dict(FULL))
    assert (options.guidance_scale, options.flow_shift, options.drop_think) == (2.5, 3.0, True)
    assert (options.sampling.do_sample, options.sampling.temperature, options.sampling.top_k) == (True, 0.6, 1024)


@pytest.mark.parametrize(("field", "value"), [("guidance_scale", 0.0), ("flow_shift", 1.0), ("drop_think", False)])
def test_a_requests_value_wins_even_when_it_is_falsy(field: str, value: float) -> None:
    options = Options.resolve(EditRequest("x", **{field: value}), GenerationConfig.from_dict(FULL))
    assert getattr(options, field) == value


def test_sampling_overrides() -> None:
    request = EditRequest("x", do_sample=False, temperature=1.5, top_k=0, top_p=0.1)
    sampling = Options.resolve(request, GenerationConfig.from_dict(FULL)).sampling
    assert (sampling.do_sample, sampling.temperature, sampling.top_k, sampling.top_p) == (False, 1.5, 0, 0.1)
