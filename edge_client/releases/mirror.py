"""What the broker holds of the release channel, in memory: signed files by name, none of them believed yet.

The broker, or whoever got into it, may retain anything. So the mirror takes only names that the channel has, files of
a size that the channel has, and so many of them; what is beyond is counted and left out.
"""

import collections
import re
from collections.abc import Iterator
from typing import Final

from wire_protocol.errors import MalformedMessage
from wire_protocol.limits import MAX_CONTROL_BYTES
from wire_protocol.topics import release_file_name

__all__ = ["MAX_MIRROR_BYTES", "MAX_MIRROR_FILES", "ReleaseMirror"]

MAX_MIRROR_BYTES: Final = 4 * 1024 * 1024
MAX_MIRROR_FILES: Final = 1024

_METADATA: Final = re.compile(r"timestamp\.json|[1-9][0-9]{0,8}\.[a-z]+\.json")
_TARGET: Final = re.compile(r"[0-9a-f]{64}\.(manifest|order)-[A-Za-z0-9_-]+\.json")


class ReleaseMirror:
    """The retained release files heard so far. ``is_changed`` says whether there is reason to verify again."""

    __slots__ = ("_files", "_num_bytes", "is_changed", "num_refused")

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._num_bytes = 0
        self.is_changed = False
        """Whether a file came or changed since the owner last set this to False."""
        self.num_refused: collections.Counter[str] = collections.Counter()
        """``name``, ``oversized`` or ``full`` -> how often."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def get(self, name: str) -> bytes | None:
        """The file of this name, or None."""
        return self._files.get(name)

    def take(self, topic: str, payload: bytes) -> None:
        """Takes a message of the release channel; an empty one means that the file is gone. Never raises for one."""
        try:
            name = release_file_name(topic)
        except MalformedMessage:
            self.num_refused["name"] += 1
            return
        if not (_METADATA.fullmatch(name) or _TARGET.fullmatch(name)):
            self.num_refused["name"] += 1
        elif len(payload) > MAX_CONTROL_BYTES:
            self.num_refused["oversized"] += 1
        else:
            self._put(name, payload)

    def _put(self, name: str, payload: bytes) -> None:
        known = self._files.get(name, b"")
        if payload == known:
            return
        num_bytes = self._num_bytes - len(known) + len(payload)
        is_new = name not in self._files
        if payload and (num_bytes > MAX_MIRROR_BYTES or (is_new and len(self._files) >= MAX_MIRROR_FILES)):
            self.num_refused["full"] += 1
            return
        self._num_bytes = num_bytes
        self._files[name] = payload
        if not payload:
            del self._files[name]
        self.is_changed = True
