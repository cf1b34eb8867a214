"""What the fields of one request mean together."""

from __future__ import annotations

from typing import Any

import pytest

from hunyuan.errors import InvalidPrompt, InvalidRequest
from hunyuan.requests import MAX_SEED
from hunyuan.serving.openai.call import ImageCall, call_of
from hunyuan.settings import Settings


def call(**values: Any) -> ImageCall:
    return call_of("image_edit", {"prompt": "a boat", **values}, [b"<pixels>"], Settings())


def test_the_defaults_are_those_of_an_edit() -> None:
    asked = call()
    (request,) = asked.requests([], 50)
    assert (asked.n, asked.quality, asked.output_format, asked.output_compression) == (1, "medium", "png", 100)
    assert (asked.stream, asked.stream_progress, asked.request.previews) == (False, False, 0)
    assert (request.steps, request.resolution, request.step_cache, request.bot_task) == (
        *(None, "auto", None),
        "think_recaption",
    )
    assert request.seed == asked.seed


def test_every_extra_reaches_the_request() -> None:
    extras = {
        "guidance_scale": 2.5,
        "flow_shift": 3.0,
        "bot_task": "think",
        "use_system_prompt": "en_vanilla",
        "cot_text": "<think>a</think>",
        "infer_align_image_size": False,
        "max_new_tokens": 9,
    }
    (request,) = call(**extras, size="4:3", seed=3, steps=5, step_cache="spectrum").requests([], 50)
    assert {name: getattr(request, name) for name in extras} == extras
    assert (request.resolution, request.seed, request.steps, request.step_cache) == ("4:3", 3, 5, "spectrum")


def test_several_pictures_differ_by_their_seeds_alone() -> None:
    first, second, third = call(n=3, seed=7).requests(["picture"], 50)
    assert [first.seed, second.seed, third.seed] == [7, 8, 9]
    assert vars(first) | {"seed": 9} == vars(third)


def test_a_drawn_seed_leaves_room_for_all_pictures() -> None:
    seeds = [call(n=4).requests([], 50)[-1].seed for _ in range(50)]
    assert max(seed or 0 for seed in seeds) <= MAX_SEED
    assert len(set(seeds)) == 50


@pytest.mark.parametrize(
    ("quality", "steps", "cache"),
    [
        *((name, None, None) for name in ("auto", "standard", "medium")),
        *((name, 50, None) for name in ("high", "hd", "xhigh", "max")),
        ("low", None, "taylor"),
    ],
)
def test_quality_means_steps_and_step_cache(quality: str, steps: int | None, cache: str | None) -> None:
    (request,) = call(quality=quality).requests([], 50)
    assert (request.steps, request.step_cache) == (steps, cache)


def test_steps_and_step_cache_win_over_quality() -> None:
    (request,) = call(quality="high", steps=9).requests([], 50)
    assert request.steps == 9
    (request,) = call(quality="low", step_cache="none").requests([], 50)
    assert request.step_cache is None


def test_steps_may_have_either_name_or_both_if_they_agree() -> None:
    assert call(num_inference_steps=4).request.steps == 4
    assert call(num_inference_steps=4, steps=4).request.steps == 4
    with pytest.raises(InvalidRequest, match="num_inference_steps: it is another word for steps, and the two differ"):
        call(num_inference_steps=4, steps=5)


def test_a_system_prompt_of_ones_own_means_custom() -> None:
    assert call(system_prompt="paint").request.use_system_prompt == "custom"
    assert call(system_prompt="paint", use_system_prompt="dynamic").request.use_system_prompt == "dynamic"


def test_what_must_not_reach_the_log_is_known() -> None:
    assert call(system_prompt="sys", cot_text="cot").hidden == ("a boat", "sys", "cot")
    assert "pixels" not in repr(call())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n: got 0; allowed is a whole number from 1 to 4"),
        ({"n": 5}, "n: got 5"),
        ({"size": "huge"}, "size: got 'huge'; allowed are auto"),
        ({"size": "9:1"}, "size: got 9x1, a ratio of 9.0:1"),
        ({"quality": "best"}, "quality: got 'best'; allowed are auto, standard, low, medium, high, hd, xhigh, max"),
        ({"output_format": "gif"}, "output_format: got 'gif'; allowed are png, jpeg, webp"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression: got 101"),
        ({"output_compression": 50}, "output_compression: got 50; a PNG loses nothing, send jpeg or webp"),
        ({"response_format": "url"}, "response_format: got 'url'; this server keeps no pictures"),
        ({"response_format": "hex"}, "response_format: got 'hex'; allowed are b64_json"),
        ({"background": "transparent"}, "background: got 'transparent'; this model paints no transparency"),
        ({"background": "red"}, "background: got 'red'; allowed are opaque, auto"),
        ({"partial_images": 4, "stream": True}, "partial_images: got 4; allowed is a whole number from 0 to 3"),
        ({"partial_images": 1}, "partial_images: there is nowhere to send that; it needs stream: true"),
        ({"stream_progress": True}, "stream_progress: there is nowhere to send that"),
        ({"steps": 0}, "steps: got 0; allowed is a whole number from 1 to 100"),
        ({"num_inference_steps": 101}, "num_inference_steps: got 101; allowed"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": MAX_SEED, "n": 2}, f"seed: got {MAX_SEED}; the 2 pictures take seeds up to {MAX_SEED}"),
        ({"guidance_scale": 101.0}, "guidance_scale: got 101.0"),
        ({"flow_shift": 0}, "flow_shift: got 0"),
        ({"bot_task": "sing"}, "bot_task: got 'sing'"),
        ({"use_system_prompt": "mine"}, "use_system_prompt: got 'mine'"),
        ({"system_prompt": "a", "use_system_prompt": "en_unified"}, "system_prompt: it needs use_system_prompt custom"),
        (
            {"system_prompt": "a", "use_system_prompt": "dynamic", "bot_task": "think"},
            "system_prompt: dynamic has prompts of its own",
        ),
        ({"use_system_prompt": "custom"}, "system_prompt: this field is missing"),
        ({"cot_text": "a" * 100_001}, "cot_text: it has 100,001 characters; at most 100,000"),
        ({"step_cache": "dit"}, "step_cache: got 'dit'; allowed are none, taylor, spectrum"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"cot_text": "\ud800"}, "cot_text: character 0 is half a character"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_own_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(**values)
    assert str(caught.value).startswith(message)
    assert caught.value.field == message.partition(":")[0]


@pytest.mark.parametrize("prompt", [" ", "", "x" * 4001, "\ud800"])
def test_a_prompt_is_bounded_as_that_of_an_edit(prompt: str) -> None:
    with pytest.raises(InvalidPrompt):
        call(prompt=prompt)


def test_a_prompt_there_must_be() -> None:
    with pytest.raises(InvalidPrompt, match="this field is missing; 1 to 4,000 characters"):
        call_of("image_generation", {}, [], Settings())


@pytest.mark.parametrize("name", ["bot_task", "use_system_prompt", "size", "quality", "step_cache", "output_format"])
def test_a_refusal_quotes_a_little_of_what_came(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(**{name: "a" * 1_000_000})
    assert len(str(caught.value)) < 300


def test_dynamic_takes_a_system_prompt_for_the_default_task() -> None:
    (request,) = call(use_system_prompt="dynamic", system_prompt="be brief").requests([], 50)
    assert (request.use_system_prompt, request.system_prompt) == ("dynamic", "be brief")
