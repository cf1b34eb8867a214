"""The engine behind HUNYUAN_ENGINE=official: the checkpoint's own Python code, driven from outside.

The authors ship their model as remote code next to the weights. `OfficialEngine` loads it through
transformers and calls its one entry point, `generate_image`. That entry point was written for one image
per process, so most of this file is about making it behave like a function of the request:

- steps, guidance, shift and the sampling fields are read from `model.generation_config` alone (the
  keyword arguments of those names are ignored, or raise), so a copy of it is put in place for the request;
- the pipeline keeps the flow shift it was built with, so each request has one built anew;
- text is sampled from the process-wide random generators, so these are seeded and put back;
- attributes that a request leaves on the model are removed again;
- each decoded token and each denoising step is one call of the model object, so two forward hooks are
  enough for cancelling, progress and timings.

What the file does not know: the network, the tokenizer and the prompt layout. Validation and defaults are
`Editor`'s. An engine serves one request at a time. While it runs, other threads must not use the
process-wide generators (`random`, torch's default): they would see and disturb the request's own.
"""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hunyuan.checkpoint.folder import checkpoint_name
from hunyuan.engines.official_loading import check_folder, check_packages, load_arguments, load_model, module_name
from hunyuan.engines.official_watch import Watch
from hunyuan.errors import HunyuanError, InferenceFailed, InvalidRequest, OutOfMemory
from hunyuan.pictures.reader import load_image
from hunyuan.requests import CancelToken, EditRequest, EditResult, PreviewCallback, ProgressCallback, TextCallback
from hunyuan.settings import Settings

# `EditRequest` fields -> names in generation_config. `steps` is handled apart: it is never None.
_CONFIG_FIELDS = {
    "guidance_scale": "diff_guidance_scale",
    "flow_shift": "flow_shift",
    "do_sample": "do_sample",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "drop_think": "drop_think",
}

# The values of the authors' script, and the first steps in full (`enable_first_enhance`): without that the
# first forecast step fails, because step 0 has another length than the later ones.
_TAYLOR = {
    "interval": 5,
    "order": 2,
    "enable_first_enhance": True,
    "first_enhance_steps": 3,
    "enable_tailing_enhance": True,
    "tailing_enhance_steps": 1,
    "low_freqs_order": 2,
    "high_freqs_order": 2,
}


class OfficialEngine:
    """A loaded official model.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` gave, with its tokenizer loaded.
        home: a private folder to delete when the engine goes; None: nothing to delete.
    """

    def __init__(self, model: Any, home: Path | None = None) -> None:
        self.model = model
        if home is not None:
            weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> OfficialEngine:
        """Runs the checkpoint's own loading code: only for folders whose code is trusted.

        Raises:
            SettingsError: another transformers, a missing package, or a setting this engine cannot honour.
            CheckpointError: the folder holds no official code, or that code cannot load it.
        """
        check_packages()
        check_folder(folder)
        arguments = load_arguments(settings)
        if settings.cache_dir is not None:
            settings.cache_dir.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix="hunyuan_official_", dir=settings.cache_dir))
        try:
            link = home / module_name(folder)
            link.symlink_to(folder.resolve(), target_is_directory=True)
            return cls(load_model(link, checkpoint_name(folder), arguments), home)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise

    def run(
        self,
        request: EditRequest,
        *,
        seed: int,
        steps: int,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult:
        """One picture. Equal requests with equal seeds give equal pictures, whatever ran before.

        `timings` come from outside the official code: `prepare` is all that happens between the model's
        calls (tokens, decoding the input, VAE encode, for both stages); the ViT runs inside the model's
        call and so counts as `prefill`, or as `first_step` without a text stage; `denoise` is the steps
        after the first; `vae` is all after the last step, aligning the size included. `tokens` counts
        the text calls, each of which yields one token, the ratio token included. `on_preview` is never called:
        the pipeline keeps its latents to itself.
        """
        self._refuse(request)
        watch = Watch(steps, request.max_new_tokens, on_progress, cancel)
        try:
            with _undone_after(self.model), _seeded(seed), watch.attached(self.model):
                images = [load_image(source) for source in request.images]
                self._configure(request, steps, images)
                cot_text, pictures = self.model.generate_image(seed=seed, **_arguments(request, images))
                image = pictures[0].convert("RGB")
                timings = watch.finish()
        except HunyuanError:
            raise
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # the frames still hold the request's tensors
            torch.cuda.empty_cache()
            raise OutOfMemory("the device ran out of memory in the official code") from error
        except Exception as error:
            # The official messages may quote the prompt: only the type is told, the rest is in the chain.
            raise InferenceFailed(f"the official code raised {type(error).__name__}") from error
        if isinstance(cot_text, list):
            cot_text = cot_text[0]
        if on_text is not None and cot_text:
            on_text(cot_text)
        return EditResult(image, cot_text, seed, image.size, steps, len(watch.text), timings)

    def _refuse(self, request: EditRequest) -> None:
        """What the official code accepts and then fails on, or does not know."""
        if request.step_cache not in (None, "taylor"):
            raise InvalidRequest("step_cache", f"{request.step_cache!r}; the official engine knows only 'taylor'")
        guidance = request.guidance_scale
        if guidance is not None and guidance <= 1 and not getattr(self.model.config, "cfg_distilled", False):
            raise InvalidRequest("guidance_scale", f"{guidance}; the official engine needs more than 1")

    def _configure(self, request: EditRequest, steps: int, images: list[Image.Image]) -> None:
        """Sets the model up for one request. Everything set here is undone by `_undone_after`."""
        config = copy.deepcopy(self.model.generation_config)
        config.diff_infer_steps = steps
        for field, name in _CONFIG_FIELDS.items():
            value = getattr(request, field)
            if value is not None:
                setattr(config, name, value)
        self.model.generation_config = config
        self.model._pipeline = None  # it would keep the flow shift, and the scheduler, of an earlier request
        self._allow_missing_ratio(images[0].height / images[0].width if images else 1.0)

    def _allow_missing_ratio(self, height_over_width: float) -> None:
        """When `max_new_tokens` runs out before a ratio token, use the first image's ratio (or 1:1).

        The official code turns the last token into a bucket index and raises when it is no ratio token. We
        answer that one question in its place. Running the request again with a fixed size would give the
        same picture, but only after decoding all the text, here thousands of tokens, once more.
        """
        official = getattr(self.model, "_get_ratio_index_from_token", None)
        if official is None:  # a revision without it: its own error stands
            return
        group = self.model.image_processor.vae_reso_group
        buckets = [group[index] for index in range(len(group))]

        def ratio_index(*arguments: Any, **named: Any) -> int:
            try:
                return official(*arguments, **named)
            except ValueError:
                distances = [abs(bucket.height / bucket.width - height_over_width) for bucket in buckets]
                return distances.index(min(distances))

        self.model._get_ratio_index_from_token = ratio_index


# --- a request, as generate_image wants it ---


def _arguments(request: EditRequest, images: list[Image.Image]) -> dict[str, Any]:
    """The keyword arguments of `generate_image` for this request (seed apart).

    Sampling fields are deliberately not among them: see the module's text.
    """
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "image": images or None,
        "image_size": official_size(request.resolution),
        "use_system_prompt": request.use_system_prompt,
        "system_prompt": request.system_prompt,
        "bot_task": request.bot_task,
        "infer_align_image_size": request.infer_align_image_size,
        "max_new_tokens": request.max_new_tokens,
    }
    if request.cot_text is not None:
        arguments |= _given_text(request)
    if request.step_cache == "taylor":
        arguments |= {"use_taylor_cache": True, **{f"taylor_cache_{name}": value for name, value in _TAYLOR.items()}}
    return arguments


def _given_text(request: EditRequest) -> dict[str, Any]:
    """The official code replaces a given text with its own, unless the task is "image".

    So the task is "image" here; "dynamic" picks its preset by task and has to be resolved before that.
    """
    changed: dict[str, Any] = {"cot_text": request.cot_text, "bot_task": "image"}
    if request.use_system_prompt == "dynamic" and request.bot_task != "image":
        presets = {"think": "en_think_recaption", "recaption": "en_recaption"}
        otherwise = "custom" if request.system_prompt else "None"
        changed["use_system_prompt"] = presets.get(request.bot_task, otherwise)
    return changed


def official_size(resolution: str) -> str:
    """`WIDTHxHEIGHT` -> `HEIGHTxWIDTH`. `auto` and `W:H` (width first there too) stay as they are."""
    if "x" not in resolution:
        return resolution
    width, height = resolution.split("x")
    return f"{height}x{width}"


# --- nothing of a request stays ---


@contextmanager
def _undone_after(model: Any) -> Iterator[None]:
    """Puts every attribute of the model, of its backbone and of its helpers back as it was, in all cases.

    The official code keeps token counts, Taylor state, the scheduler and the RoPE tables of the last
    request there. The layers below are left alone: what the MoE stacks at its first call is to stay.
    """
    helpers = (getattr(model, name, None) for name in ("model", "cached_rope", "image_processor"))
    holders = [model, *(helper for helper in helpers if hasattr(helper, "__dict__"))]
    before = [dict(vars(holder)) for holder in holders]
    try:
        yield
    finally:
        for holder, attributes in zip(holders, before, strict=True):
            now = vars(holder)
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update(attributes)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds what the text stage draws from (torch's generators; `random` for its posterior), then restores it."""
    python_state = random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        torch.manual_seed(seed)  # all CUDA devices too
        try:
            yield
        finally:
            random.setstate(python_state)
