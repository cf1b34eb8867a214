"""The demo, a small checkpoint of our own that really edits: this folder holds it, packed. Words about it.

How it was made and what it knows: docs/demo.md, `scripts/demo`. Knows no weights; `hunyuan.checkpoint` unpacks them.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
REQUESTS = ("Make it black and white", "Make the background blue", "Mirror it")
"""Three requests that it knows; README.md, the page at `/` and the log name them."""

ABOUT = (
    "the built-in demo, a small model that has learned some edits and answers with about 256x256 pixels; it knows "
    + ", ".join(f'"{request}"' for request in REQUESTS)
    + " and some more, and should give the picture back where a request is none of them, which it does not always"
)
