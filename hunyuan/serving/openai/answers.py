"""What /v1/images answers: OpenAI's objects, with this service's extras.

Knows the answers' shapes. `image_of` does the slow work, for a thread of its own: it encodes the picture.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hunyuan.requests import EditResult, TokenUsage
from hunyuan.serving.openai.call import ImageCall
from hunyuan.serving.picture_files import encode_picture


@dataclass(frozen=True)
class Painter:
    """What the files say of where they come from.

    Attributes:
        show_prompt: whether a PNG holds the prompt.
    """

    model_name: str
    version: str
    show_prompt: bool

    def base64_of(self, result: EditResult, call: ImageCall) -> str:
        file = encode_picture(
            result,
            call.output_format,
            call.output_compression,
            model_name=self.model_name,
            version=self.version,
            prompt=call.request.prompt if self.show_prompt else None,
            from_picture=call.operation == "image_edit",
        )
        return base64.b64encode(file).decode("ascii")


def image_of(result: EditResult, call: ImageCall, painter: Painter) -> dict[str, Any]:
    """One entry of `data`: the file, the prompt as the model rewrote it, and our extras."""
    return {"b64_json": painter.base64_of(result, call), **about(result)}


def about(result: EditResult) -> dict[str, Any]:
    return {
        "revised_prompt": result.recaption,
        "cot_text": result.cot_text,
        "seed": result.seed,
        "size": size_of(result.image),
    }


def answer_of(results: Sequence[EditResult], images: Sequence[dict[str, Any]], call: ImageCall) -> dict[str, Any]:
    """The whole answer; `size` is the first picture's, each has its own beside."""
    return {
        "created": int(time.time()),
        "data": list(images),
        **how_made(results[0].image, call),
        "usage": usage_of([result.usage for result in results]),
    }


def how_made(image: Image.Image, call: ImageCall) -> dict[str, Any]:
    return {
        "size": size_of(image),
        "quality": call.quality,
        "background": "opaque",
        "output_format": call.output_format,
    }


def size_of(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def usage_of(usages: Sequence[TokenUsage | None]) -> dict[str, Any] | None:
    """Tokens of all pictures together; None where the engine does not count."""
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages):
        return None
    text, images = sum(usage.text for usage in known), sum(usage.images for usage in known)
    thought, picture = sum(usage.thought for usage in known), sum(usage.picture for usage in known)
    return {
        "input_tokens": text + images,
        "input_tokens_details": {"image_tokens": images, "text_tokens": text},
        "output_tokens": thought + picture,
        "output_tokens_details": {"image_tokens": picture, "text_tokens": thought},
        "total_tokens": text + images + thought + picture,
    }
