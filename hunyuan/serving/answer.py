"""What an edit's answer is made of: the PNG's bytes and the headers that say how it came about.

Knows results and records. Who sends the answer, and when, it does not know.
"""

from __future__ import annotations

from hunyuan.requests import EditResult
from hunyuan.serving.header_text import percent_encoded
from hunyuan.serving.png import encode_png
from hunyuan.serving.records import EditRecord

PNG = "image/png"


def png_of(result: EditResult, model_name: str | None, version: str, prompt: str | None) -> bytes:
    """The file of a result. `version` is ours; `prompt` is written into the file, unless it is None."""
    return encode_png(result, model_name=model_name or "", version=version, prompt=prompt)


def headers_of(result: EditResult, edit: EditRecord) -> dict[str, str]:
    """What the answer says about the edit; the envelope adds `X-Request-ID` and `X-Model`."""
    width, height = result.size
    timings = {"queue": edit.queue_s or 0.0, **result.timings}
    headers = {
        "X-Seed": str(result.seed),
        "X-Image-Size": f"{width}x{height}",
        "X-Steps": str(result.steps),
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1e3:.1f}" for stage, seconds in timings.items()),
    }
    return headers if not result.recaption else headers | {"X-Recaption": percent_encoded(result.recaption)}
