"""Environment variables that Kubernetes and Docker write into every container about the services beside it.

For a Service named `hunyuan-image` they begin with HUNYUAN_IMAGE_, as our settings begin with HUNYUAN_. Told apart by
name and value together, so that a mistyped setting is still one. Knows no setting of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_ADDRESS = r"(tcp|udp|sctp)://\S+"
_NUMBER = r"\d{1,5}"
_PORT = r"_PORT_\d{1,5}_(TCP|UDP|SCTP)"
# How a name ends, and what its value then looks like.
_LINKS = (
    (r"_SERVICE_HOST", r"[\w.:-]+"),
    (r"_SERVICE_PORT(_\w+)?", _NUMBER),
    (r"_PORT", _ADDRESS),
    (_PORT, _ADDRESS),
    (rf"{_PORT}_ADDR", r"[\w.:-]+"),
    (rf"{_PORT}_PORT", _NUMBER),
    (rf"{_PORT}_PROTO", r"tcp|udp|sctp"),
)


def service_links(variables: Mapping[str, str]) -> set[str]:
    """The names among `variables` that a platform wrote.

    Docker's links also copy the linked container's name and its whole environment (`NAME_NAME`, `NAME_ENV_*`): they
    count where the address beside them (`NAME_PORT`) shows that there is a link.
    """
    found = {name for name, value in variables.items() if _is_link(name.upper(), value)}
    linked = tuple(name.upper().removesuffix("PORT") for name in found if name.upper().endswith("_PORT"))
    linked = tuple(prefix for prefix in linked if not prefix.endswith(("_TCP_", "_UDP_", "_SCTP_", "_SERVICE_")))
    copies = tuple(f"{prefix}{what}" for prefix in linked for what in ("NAME", "ENV_"))
    return found | {
        name
        for name in variables
        if any(name.upper() == c or (c[-1] == "_" and name.upper().startswith(c)) for c in copies)
    }


def _is_link(name: str, value: str) -> bool:
    return any(re.fullmatch(rf"\w+?{end}", name) and re.fullmatch(text, value) for end, text in _LINKS)
