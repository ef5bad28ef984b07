"""Every committed checkpoint is kept, and a registry that was touched says so."""

import hashlib
import json

import pytest

from coordinator.errors import RegistryDamaged
from coordinator.model_registry import CommittedCheckpoint, ModelRegistry, read_registry


def _entry(number, checkpoint, **changes):
    values = {
        "kind": "committed", "task_id": "task-1", "plan_sha256": "a" * 64, "round_id": number, "num_commits": number,
        "checkpoint_sha256": hashlib.sha256(checkpoint).hexdigest(), "epsilon": 0.5 * number, "metrics": {"loss": 1.0 / number},
    }  # fmt: skip
    return CommittedCheckpoint(**(values | changes))


@pytest.fixture
def filled(tmp_path):
    registry = ModelRegistry(tmp_path)
    for number in (1, 2, 3):
        checkpoint = f"weights {number}".encode()
        registry.commit(_entry(number, checkpoint), checkpoint)
    return tmp_path


def test_what_was_committed_is_read_back_after_a_restart(filled):
    entries, head = read_registry(filled)
    assert [entry.round_id for entry in entries] == [1, 2, 3]
    assert (filled / f"{entries[2].checkpoint_sha256}.safetensors").read_bytes() == b"weights 3"
    assert ModelRegistry(filled).head == head


def test_the_same_commit_is_entered_once(filled):
    registry = ModelRegistry(filled)
    registry.commit(_entry(3, b"weights 3"), b"weights 3")
    assert len(registry.entries) == 3


def test_a_line_that_was_being_written_is_cut_off(filled):
    with (filled / "log").open("ab") as stream:
        stream.write(b'{"entry": {"kind"')
    assert len(ModelRegistry(filled).entries) == 3


@pytest.mark.parametrize("damage", ["change", "remove", "swap", "forge", "checkpoint", "lost"])
def test_whatever_is_done_to_the_registry_is_noticed(filled, damage):
    log = filled / "log"
    lines = log.read_bytes().splitlines(keepends=True)
    match damage:
        case "change":
            lines[1] = lines[1].replace(b'"epsilon":1.0', b'"epsilon":0.1')
        case "remove":
            del lines[1]
        case "swap":
            lines[1], lines[2] = lines[2], lines[1]
        case "forge":
            parsed = json.loads(lines[2])
            parsed["previous"] = hashlib.sha256(lines[2].rstrip()).hexdigest()
            lines.append(json.dumps(parsed).encode() + b"\n")
        case "checkpoint":
            next(filled.glob("*.safetensors")).write_bytes(b"other weights")
        case "lost":
            next(filled.glob("*.safetensors")).unlink()
    log.write_bytes(b"".join(lines))
    with pytest.raises(RegistryDamaged):
        read_registry(filled)


def test_an_entry_about_other_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another checkpoint"):
        ModelRegistry(tmp_path).commit(_entry(1, b"these"), b"those")
