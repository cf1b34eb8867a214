"""Writes small checkpoint folders whose remote code has the manners of the official one.

The code is ours and has no network worth the name: it reproduces only how the official class is driven,
each trap included (see the comments). The picture's pixels are a hash of everything that took effect, and
`image.info["facts"]` tells the same in the open, so that a test can see each of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIGURATION = """
from transformers import PretrainedConfig


class HunyuanImage3Config(PretrainedConfig):
    model_type = "hunyuan_image_3_moe"

    def __init__(self, moe_impl="eager", moe_drop_tokens=False, cfg_distilled=False, **kwargs):
        self.moe_impl = moe_impl
        self.moe_drop_tokens = moe_drop_tokens
        self.cfg_distilled = cfg_distilled
        super().__init__(**kwargs)
"""

FLAVOUR = 'FLAVOUR = "{flavour}"\n'  # a relative import, as the official modeling file has many

MODELING = """
import hashlib
import json
import random
import types

import torch
from PIL import Image
from transformers import GenerationMixin, PreTrainedModel

from .configuration_hunyuan_image_3 import HunyuanImage3Config
from .flavour import FLAVOUR

WORDS = ["red", "green", "blue", "sky", "sea", "sun", "dog", "cat"]
TEXT_TOKENS = 6
BUCKETS = [(64, 128), (96, 96), (128, 64), (48, 96)]  # (height, width)
RATIO = 1000  # token id of bucket 0


class Tokenizer:
    def __init__(self, folder):
        with open(f"{folder}/tokenizer.json") as file:
            self.vocabulary = json.load(file)


class CachedRope:
    def __init__(self):
        self.image_info = None

    def __call__(self, image_info):
        if self.image_info is None:  # the first request's tables serve all later ones
            self.image_info = image_info
        return self.image_info


class Pipeline:
    def __init__(self, shift):
        self.shift = shift  # frozen
        self.pictures = 0

    def __call__(self, model, steps, state, size, facts):
        self.pictures += 1
        for step in range(steps):
            state = model(mode="gen_image", first_step=step == 0, value=state, step=step, steps=steps)
        facts |= {"shift": self.shift, "pictures": self.pictures, "state": round(float(state), 6)}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode()).digest()
        image = Image.new("RGB", (size[1], size[0]), tuple(digest[:3]))
        image.info["facts"] = facts
        return [image]


class Backbone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(1))


class HunyuanImage3ForCausalMM(PreTrainedModel, GenerationMixin):
    config_class = HunyuanImage3Config
    _supports_sdpa = True
    _no_split_modules = []

    def __init__(self, config):
        super().__init__(config)
        self.model = Backbone()
        self.image_processor = types.SimpleNamespace(
            vae_reso_group=[types.SimpleNamespace(height=h, width=w) for h, w in BUCKETS]
        )
        self.cached_rope = CachedRope()
        self.use_taylor_cache = False
        self.num_image_tokens = None
        self._pipeline = None
        self._tokenizer = None
        self.post_init()

    def load_tokenizer(self, folder):
        self._tokenizer = Tokenizer(folder)

    @property
    def pipeline(self):
        if self._pipeline is None:  # built once: a later flow_shift comes too late
            self._pipeline = Pipeline(self.generation_config.flow_shift)
        return self._pipeline

    def forward(self, mode=None, first_step=None, value=None, step=0, steps=0):
        if mode == "gen_text":
            return torch.randint(len(WORDS), (1,))  # from the process-wide generator
        if self.use_taylor_cache:  # a counter on the backbone that nobody resets between pictures
            self.model.counter = getattr(self.model, "counter", 0) + 1
            value = value + 10 * self.model.counter
        return value * 0.5 + self.model.gain

    def generate_text(self, config, max_new_tokens, need_ratio):
        ids = []
        while len(ids) < max_new_tokens:
            word = self(mode="gen_text")  # no first_step here
            if len(ids) == TEXT_TOKENS:
                ids.append(RATIO + 2)
                break
            ids.append(int(word) if config.do_sample else 0)
            if len(ids) == TEXT_TOKENS and not need_ratio:
                break
        return ids

    def _get_ratio_index_from_token(self, token, tokenizer):
        if not RATIO <= token < RATIO + len(BUCKETS):
            raise ValueError(f"Unknown ratio token id {token}")
        return token - RATIO

    def _text_stage(self, facts, need_ratio, max_new_tokens, size, bot_task, system_prompt):
        config = self.generation_config
        facts["text_posterior"] = random.randint(0, 10_000_000)  # no seed is passed to this stage
        facts["sampling"] = (config.do_sample, config.temperature, config.top_k, config.top_p)
        ids = self.generate_text(config, max_new_tokens, need_ratio)
        words = " ".join(WORDS[i] for i in ids if i < RATIO)
        cot = f"<think>{words}</think><recaption>{words}</recaption>"
        if config.drop_think:
            cot, system_prompt = f"<recaption>{words}</recaption>", "en_recaption"
        if need_ratio:
            size = BUCKETS[self._get_ratio_index_from_token(ids[-1], self._tokenizer)]
        return [cot], size, system_prompt

    @torch.no_grad()
    def generate_image(self, prompt=None, image=None, message_list=None, seed=None, image_size="auto",
                       use_system_prompt=None, system_prompt=None, bot_task=None, infer_align_image_size=False,
                       use_taylor_cache=False, taylor_cache_interval=None, taylor_cache_order=None,
                       taylor_cache_enable_first_enhance=None, taylor_cache_first_enhance_steps=None,
                       taylor_cache_enable_tailing_enhance=None, taylor_cache_tailing_enhance_steps=None,
                       taylor_cache_low_freqs_order=None, taylor_cache_high_freqs_order=None, **kwargs):
        max_new_tokens = kwargs.pop("max_new_tokens", 2048)
        cot_text = kwargs.pop("cot_text", None)
        if prompt == "out of memory":
            self.num_image_tokens = 77
            raise torch.OutOfMemoryError("tried to allocate")
        if prompt.startswith("fail"):
            self.num_image_tokens = 77
            raise KeyError(prompt)
        for item in image or []:
            assert isinstance(item, (Image.Image, str, bytes)), type(item)  # no Path
        if use_taylor_cache:
            assert taylor_cache_enable_first_enhance and taylor_cache_first_enhance_steps >= 2
        facts = {"flavour": FLAVOUR, "seed": seed, "align": infer_align_image_size, "task": bot_task,
                 "images": [getattr(item, "mode", "path") for item in image or []],
                 "system": (use_system_prompt, system_prompt)}
        self.use_taylor_cache = False
        size, system = image_size, use_system_prompt
        if bot_task in ("think", "recaption", "think_recaption"):  # a given cot_text is overwritten
            cot_text, size, system = self._text_stage(facts, size == "auto", max_new_tokens, size, bot_task, system)
        elif size == "auto":
            generate = dict(do_sample=False, **kwargs)  # TypeError when do_sample is given
            facts["ratio_path"] = sorted(generate)
            self(mode="gen_text")
            size = BUCKETS[0]
        if isinstance(size, str) and "x" in size:
            size = tuple(int(side) for side in size.split("x"))  # height first
        elif isinstance(size, str):
            width, height = (int(side) for side in size.split(":"))
            size = (height * 16, width * 16)
        leftover = (self.num_image_tokens, hasattr(self, "post_token_len"), hasattr(self.image_processor, "last_size"))
        facts |= {"leftover": leftover, "system_after": system,
                  "rope": self.cached_rope(size), "text": cot_text, "size": size}
        self.num_image_tokens, self.post_token_len = size[0] * size[1], 2
        self.image_processor.last_size = size
        self.use_taylor_cache = use_taylor_cache
        config = self.generation_config  # diff_infer_steps among kwargs is not looked at
        facts |= {"steps": config.diff_infer_steps, "guidance": config.diff_guidance_scale}
        generator = torch.Generator().manual_seed(random.randint(0, 10_000_000) if seed is None else seed)
        noise = torch.randn(1, generator=generator)
        return cot_text, self.pipeline(self, config.diff_infer_steps, noise, size, facts)
"""

GENERATION_CONFIG = {
    "bot_task": "image",
    "use_system_prompt": "None",
    "sequence_template": "instruct",
    "drop_think": False,
    "diff_infer_steps": 50,
    "diff_guidance_scale": 2.5,
    "flow_shift": 3.0,
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 1024,
    "top_p": 0.95,
    "moe_impl": "eager",
}


def write_checkpoint(folder: Path, *, flavour: str = "vanilla", **config: Any) -> Path:
    """A complete folder; `config` goes into config.json."""
    folder.mkdir(parents=True)
    values = {
        "model_type": "hunyuan_image_3_moe",
        "architectures": ["HunyuanImage3ForCausalMM"],
        "auto_map": {
            "AutoConfig": "configuration_hunyuan_image_3.HunyuanImage3Config",
            "AutoModelForCausalLM": "modeling_hunyuan_image_3.HunyuanImage3ForCausalMM",
        },
        "torch_dtype": "float32",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "configuration_hunyuan_image_3.py").write_text(CONFIGURATION)
    (folder / "modeling_hunyuan_image_3.py").write_text(MODELING)
    (folder / "flavour.py").write_text(FLAVOUR.format(flavour=flavour))
    save_file({"model.gain": torch.tensor([0.25])}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
