"""Where the running server can be reached, in words for the person who started it.

Knows what the framework tells its worker processes: the address that the master listens on, as JSON by service.
"""

from __future__ import annotations

import json
import os

_ADDRESSES = "BENTOML_RUNNER_MAP"


def address_of(service: str) -> str | None:
    """`http://host:port`; None outside `bentoml serve`."""
    try:
        address = json.loads(os.environ.get(_ADDRESSES, "{}")).get(service)
    except (ValueError, AttributeError):
        return None
    return address if isinstance(address, str) and address.startswith(("http://", "https://")) else None


def invitation(address: str | None, wants_key: bool = False) -> str:
    """The rest of a line that says what is served; nothing where the address is unknown."""
    if address is None:
        return ""
    key = '-H "Authorization: Bearer $EDIT_API_KEY" ' if wants_key else ""
    form = '-F image=@photo.jpg --form-string "prompt=Make it black and white"'
    command = f"curl {key}-o edited.png {form} {address}/edit"
    return f" at {address}; to try it: {command}"
