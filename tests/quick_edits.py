"""Edits of the golden checkpoint that take no longer than a test of their stages needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hunyuan import Editor, EditRequest, Settings
from hunyuan.generation.job import Checkpoint


def quick_decode(latents: Tensor) -> Tensor:
    """In place of the autoencoder's decoder, which is most of a tiny edit's time."""
    return torch.tanh(latents[:, :3]).repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)


@contextmanager
def quick_checkpoint(golden: Path) -> Iterator[Checkpoint]:
    """The golden checkpoint loaded anew, for a module whose tests change what it computes with."""
    editor = Editor.load(Settings(model_id=golden / "checkpoint", device="cpu", dtype="float32", moe_impl="eager"))
    checkpoint = editor.engine.checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.model, "decode_image", quick_decode)
        yield checkpoint


def edit(**changes: Any) -> EditRequest:
    """The best token each time, under a short system prompt."""
    base: dict[str, Any] = {
        "prompt": "Make the sky orange",
        "use_system_prompt": "custom",
        "system_prompt": "You are a careful painter.",
        "do_sample": False,
        "max_new_tokens": 64,
    }
    return EditRequest(**{**base, **changes})
