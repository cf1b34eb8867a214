"""Who a caller is, for shares: the address of a connection, or the one that a trusted proxy names.

Knows addresses and the two headers that carry them. Nothing of this goes into a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
_V6_SHARE = 64  # bits: who has one IPv6 address has all that begin like it
_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]+|\[(?P<v6>[0-9a-fA-F:.]+)\](?::[0-9]+)?")
_FORWARDED_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("[^"]*"|[^;\s]*)', re.IGNORECASE)


class Peers:
    """Tells callers apart.

    Args:
        proxies: their own addresses are not callers; what they say about theirs is believed.
    """

    def __init__(self, proxies: Iterable[Network] = ()) -> None:
        self._proxies = tuple(proxies)

    def of_connection(self, host: str | None) -> str | None:
        """The peer that a connection from `host` counts for; None where it counts for nobody, as a proxy's does."""
        address = _address(host)
        if address is None or self._trusted(address):
            return None
        return _share_of(address)

    def of_request(self, host: str | None, headers: Headers) -> str | None:
        """The peer that a request counts for: the last address in front of our proxies, where one sent it.

        A proxy adds its caller at the end of the list, so what a caller has put in there before is not looked at.
        """
        address = _address(host)
        if address is None or not self._trusted(address):
            return self.of_connection(host)
        for hop in reversed(_hops(headers)):
            address = _address(hop)
            if address is None:
                return "unknown"  # one share for all that a proxy does not name
            if not self._trusted(address):
                return _share_of(address)
        return None

    def trusts(self, host: str | None) -> bool:
        """Whether `host` is the address of one of our proxies."""
        address = _address(host)
        return address is not None and self._trusted(address)

    def _trusted(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._proxies)


def _hops(headers: Headers) -> list[str]:
    """The forwarded addresses in the order in which they were added."""
    lines = headers.getlist("x-forwarded-for")
    if lines:
        return [hop.strip() for line in lines for hop in line.split(",")]
    found = [_FORWARDED_FOR.search(hop) for line in headers.getlist("forwarded") for hop in line.split(",")]
    return [match.group(1).strip('"') if match else "" for match in found]


def _address(text: str | None) -> Address | None:
    if text is None:
        return None
    match = _PORT.fullmatch(text)
    try:
        address = ip_address((match["v4"] or match["v6"]) if match else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _share_of(address: Address) -> str:
    return str(address) if address.version == 4 else str(ip_network((address, _V6_SHARE), strict=False))
