"""A bridge and the links of hosts to it: rates, and bytes counted at the interfaces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cluster.namespaces import Namespaces

INTERFACE = "eth0"
# tbf's settings by name of the rate. A smaller burst under-delivers badly: 1 Gb/s with 16 kb is 491 Mb/s.
RATES: dict[str, tuple[str, ...]] = {
    "100mbit": ("tbf", "rate", "100mbit", "burst", "64kb", "latency", "50ms"),
    "1gbit": ("tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms"),
    "10gbit": ("tbf", "rate", "10gbit", "burst", "4mb", "latency", "50ms"),
    "25gbit": ("tbf", "rate", "25gbit", "burst", "10mb", "latency", "50ms"),
    # A queue all the same, since it is what counts bytes as they would be on a wire.
    "unshaped": ("pfifo", "limit", "10000"),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes of one host's interface since its start.

    The kernel hands a virtual link up to 64 KiB at a time under one header. ``sent`` and ``received`` are the
    interface's own counters and count that header once. ``wire_sent`` and ``wire_received`` are the queues' counters
    and count every packet of 1500 bytes with the headers that it would have on a wire; the rates are kept in terms of
    these.
    """

    sent: int = 0
    received: int = 0
    wire_sent: int = 0
    wire_received: int = 0

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.sent - other.sent,
            self.received - other.received,
            self.wire_sent - other.wire_sent,
            self.wire_received - other.wire_received,
        )


def make_bridge(switch: Namespaces) -> None:
    _without_ipv6(switch)
    # Membership queries would be traffic that nobody asked for.
    switch.output(["ip", "link", "add", "bridge", "type", "bridge", "stp_state", "0", "mcast_snooping", "0"], ("net",))
    switch.output(["ip", "link", "set", "bridge", "up"], ("net",))


def connect(switch: Namespaces, host: Namespaces, address: str, rate: str) -> None:
    """Lay a link of ``rate`` each way from the host's :data:`INTERFACE` to the bridge's port, named like the host."""
    _without_ipv6(host)
    port, peer = host.name, ["peer", "name", INTERFACE, "netns", str(host.first)]
    switch.output(["ip", "link", "add", port, "type", "veth", *peer], ("net",))
    switch.output(["tc", "qdisc", "add", "dev", port, "root", *RATES[rate]], ("net",))
    switch.output(["ip", "link", "set", port, "master", "bridge", "up"], ("net",))
    host.output(["tc", "qdisc", "add", "dev", INTERFACE, "root", *RATES[rate]], ("net",))
    host.output(["ip", "address", "add", address, "dev", INTERFACE], ("net",))
    host.output(["ip", "link", "set", INTERFACE, "up"], ("net",))
    host.output(["ip", "link", "set", "lo", "up"], ("net",))


def traffic(switch: Namespaces, host: Namespaces) -> Traffic:
    """What the host's interface has sent and received so far."""
    link = _json(host, "ip", "-s", "link", "show", INTERFACE)["stats64"]
    return Traffic(
        sent=link["tx"]["bytes"],
        received=link["rx"]["bytes"],
        wire_sent=_json(host, "tc", "-s", "qdisc", "show", "dev", INTERFACE)["bytes"],
        wire_received=_json(switch, "tc", "-s", "qdisc", "show", "dev", host.name)["bytes"],
    )


def _without_ipv6(namespaces: Namespaces) -> None:
    """IPv6 announces itself on new links, and a kernel built without it needs nothing."""
    setting = "/proc/sys/net/ipv6/conf"
    script = f"for kind in all default; do test ! -e {setting} || echo 1 >{setting}/$kind/disable_ipv6; done"
    namespaces.output(["sh", "-euc", script], ("net",))


def _json(namespaces: Namespaces, program: str, *arguments: str) -> dict[str, Any]:
    (answer,) = json.loads(namespaces.output([program, "-j", *arguments], ("net",)))
    assert isinstance(answer, dict)
    return answer
