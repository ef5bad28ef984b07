"""Whether a release can run here, decided before a byte of it is fetched. No I/O."""

import dataclasses

from wire_protocol.release import ReleaseManifest

__all__ = ["DeviceFacts", "incompatibility"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """What a release may ask of a device."""

    runtime_version: str
    """The installed LiteRT's."""
    memory_mb: float
    """All of the machine's memory."""
    tags: frozenset[str]
    """The owner's tags and the hardware class."""


def incompatibility(manifest: ReleaseManifest, facts: DeviceFacts, *, current: ReleaseManifest | None) -> str:
    """Why a release cannot run on a device, for people; empty if it can.

    Args:
        manifest: Of the release.
        facts: Of the device.
        current: The release in use, whose tensors apps rely on; None if there is none.
    """
    needs = manifest.needs
    if _version(facts.runtime_version) < _version(needs.min_runtime):
        return f"it needs LiteRT {needs.min_runtime}; here is {facts.runtime_version}"
    if facts.memory_mb < needs.min_memory_mb:
        return f"it needs {needs.min_memory_mb} MB of memory; here are {facts.memory_mb:.0f}"
    if needs.device_classes and not facts.tags.intersection(needs.device_classes):
        return f"it is meant for {', '.join(needs.device_classes)}"
    if current is not None and (manifest.input, manifest.output) != (current.input, current.output):
        return f"its tensors are not those of release {current.number}, which apps use; give it a model name of its own"
    return ""


def _version(text: str) -> tuple[int, ...]:
    """``2.1.0`` as numbers; what follows them (``rc1``) does not count, what is no version is lower than any."""
    parts = []
    for part in text.split(".")[:3]:
        digits = "".join(char for char in part if char.isdigit())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts + [0] * (3 - len(parts)))
