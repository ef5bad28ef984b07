"""The order in which one device has spoken, and what a message out of that order means. Pure.

A position is (epoch, counter). A device signs each position once, and a signature follows from the message (Ed25519 has
no chance in it). So a well-signed message that is not new is one of these:

| its position | the signature heard there | verdict | what it is |
|---|---|---|---|
| in this epoch | the same | `STALE` | a double delivery or a replay: anybody can do that |
| in this epoch | another one | `CONFLICTING` | a second machine with this key, or a state directory that was put back |
| in this epoch | not remembered | `STALE` | late, or one of the above |
| in an epoch that is over | the same | `STALE` | a replay |
| in an epoch that is over | not remembered | `FALLING_EPOCH` | a second machine that started earlier, or an old replay |

Remembered are the first messages of the epoch, because a copied state directory begins its epoch at the same counter,
and the last ones. That is some 3 kB for each device that has spoken.
"""

import collections
from typing import Final

from coordinator.refusals import GuardRefusal
from wire_protocol.signed import SignedMessage

__all__ = ["MessageOrder"]

_NUM_FIRST: Final = 16
_NUM_LAST: Final = 16
_DIGEST_BYTES: Final = 8


class MessageOrder:
    """What has been accepted of one key. Every message that it is asked about has a valid signature of that key.

    Args:
        position: The highest (epoch, counter) accepted before.
    """

    __slots__ = ("_first", "_last", "position")

    def __init__(self, position: tuple[int, int]) -> None:
        self.position = position
        self._first: dict[tuple[int, int], bytes] = {}
        self._last: collections.deque[tuple[tuple[int, int], bytes]] = collections.deque(maxlen=_NUM_LAST)

    def take(self, signed: SignedMessage) -> GuardRefusal | None:
        """Accepts a message that is after all others; or says why not."""
        if signed.position > self.position:
            if signed.epoch != self.position[0]:
                self._first.clear()
            self.position = signed.position
            self._remember(signed)
            return None
        return self._verdict(signed)

    def take_presence(self, signed: SignedMessage) -> GuardRefusal | None:
        """The same for presence, which a device signs before its time (a last will) and a broker repeats as it likes.

        Only its epoch can be asked for; and that nothing else was said at its position.
        """
        if signed.epoch < self.position[0]:
            return GuardRefusal.STALE
        if self._heard(signed.position) is None:
            # It does not move the mark: a will waits for hours at its early position.
            self._remember(signed)
            return None
        return GuardRefusal.CONFLICTING if self._verdict(signed) is GuardRefusal.CONFLICTING else None

    def _verdict(self, signed: SignedMessage) -> GuardRefusal:
        heard = self._heard(signed.position)
        if heard == signed.signature[:_DIGEST_BYTES]:
            return GuardRefusal.STALE
        if signed.epoch < self.position[0]:
            return GuardRefusal.FALLING_EPOCH
        return GuardRefusal.STALE if heard is None else GuardRefusal.CONFLICTING

    def _heard(self, position: tuple[int, int]) -> bytes | None:
        found = self._first.get(position)
        return found or next((digest for known, digest in self._last if known == position), None)

    def _remember(self, signed: SignedMessage) -> None:
        entry = signed.position, signed.signature[:_DIGEST_BYTES]
        if signed.epoch == self.position[0] and len(self._first) < _NUM_FIRST:
            self._first[entry[0]] = entry[1]
        else:
            self._last.append(entry)
