"""Whether the network is metered, as NetworkManager knows or guesses it."""

import enum
from collections.abc import Iterator
from typing import Final

from edge_client.eligibility.machine import Machine, Unknown

__all__ = ["NetworkCost", "probe_network"]

_COMMAND: Final = ("nmcli", "-t", "-g", "GENERAL.TYPE,GENERAL.STATE,GENERAL.METERED", "device", "show")
_NUM_FIELDS: Final = 3
_NO_CARRIERS: Final = {"loopback", "bridge", "veth", "tun", "tap", "dummy", "wifi-p2p"}
"""They carry nothing by themselves: what is below or behind them does."""


class NetworkCost(enum.StrEnum):
    """What traffic costs the owner."""

    METERED = "metered"
    UNMETERED = "unmetered"


def probe_network(machine: Machine) -> NetworkCost | Unknown:
    """Metered if any connected device is; unmetered only if every connected one is known to be.

    NetworkManager's D-Bus would need a library; its command line asks the same (``nmcli``, ``GENERAL.METERED``: yes,
    no, either of them guessed, or unknown).
    """
    printed = machine.run(_COMMAND)
    if isinstance(printed, Unknown):
        return Unknown(f"NetworkManager cannot be asked: {printed.why}")
    answers = list(_connected(printed))
    if any(answer.startswith("yes") for answer in answers):
        return NetworkCost.METERED
    if answers and all(answer.startswith("no") for answer in answers):
        return NetworkCost.UNMETERED
    return Unknown("NetworkManager does not know whether the network is metered")


def _connected(printed: str) -> Iterator[str]:
    """What is said of each connected device. Devices are three lines each, with an empty line between them."""
    for block in printed.split("\n\n"):
        lines = block.strip("\n").split("\n")
        if len(lines) != _NUM_FIELDS:
            continue
        kind, state, metered = lines
        if state.startswith("100") and kind not in _NO_CARRIERS:
            yield metered.strip()
