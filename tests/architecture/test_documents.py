"""The documents say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.refusals import GuardRefusal
from flockwise.cli import main
from wire_protocol import limits, messages
from wire_protocol.messages import RejectionReason, message_kind
from wire_protocol.messages import __all__ as message_names

ROOT = Path(__file__).resolve().parents[2]
WIRE = (ROOT / "docs" / "wire-protocol.md").read_text()


def test_the_state_machines_are_drawn_from_the_tables():
    subprocess.run([sys.executable, str(ROOT / "scripts" / "draw"), "--check"], check=True, cwd=ROOT)


def test_the_wire_document_names_every_message_and_every_rejection():
    kinds = [
        message_kind(kind)
        for kind in (getattr(messages, name) for name in message_names)
        if isinstance(kind, type) and issubclass(kind, messages.Message) and kind is not messages.Message
    ]
    assert len(kinds) == 19
    for kind in kinds:
        assert f"`{kind}`" in WIRE, kind
    for reason in (*RejectionReason, *GuardRefusal):
        assert f"`{reason.value}`" in WIRE, reason


def test_the_wire_document_states_the_limits_in_force():
    assert f"{limits.MAX_CONTROL_BYTES:,} bytes" in WIRE
    assert f"{limits.MAX_PIECES:,} pieces" in WIRE
    assert f"{limits.MAX_TENSORS:,}" in WIRE


@pytest.mark.parametrize("verb", [[], ["coordinator", "serve"], ["coordinator", "compile"], ["coordinator", "enrol-token"],
                                  ["coordinator", "broker-config"], ["coordinator", "broker-login"], ["coordinator", "probe-acl"], ["coordinator", "devices"], ["coordinator", "devices", "list"],
                                  ["coordinator", "devices", "show"], ["coordinator", "devices", "revoke"],
                                  ["coordinator", "devices", "reinstate"], ["edge", "enrol"], ["edge", "reset"],
                                  ["demo"], ["export"], ["freeze"], ["simulate"], ["query", "count"], ["query", "mean"],
                                  ["query", "histogram"], ["query", "quantiles"], ["edge", "run"],
                                  ["edge", "once"], ["edge", "doctor"], ["edge", "eligible"], ["edge", "show-config"],
                                  ["edge", "import-data"], ["privacy", "explain"], ["privacy", "report"], ["edge", "budget"],
                                  ["edge", "directory-request"], ["directory", "init"], ["directory", "add"], ["directory", "rotate"],
                                  ["directory", "remove"], ["directory", "show"], ["directory", "verify"],
                                  ["helper", "request"], ["helper", "enrol"], ["helper", "run"], ["helper", "show"]])  # fmt: skip
def test_every_command_helps_with_an_example_and_its_exit_codes(verb):
    result = CliRunner().invoke(main, [*verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert re.search(r"Exit codes|exit codes", result.output)
    if verb:
        assert "--json" in result.output


def test_every_flockwise_command_in_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"(?:uv run )?flockwise ((?:[a-z-]+ ?){1,2})", readme)
    assert len(commands) >= 6
    for words in commands:
        verb = words.split()
        known = CliRunner().invoke(main, [verb[0], "--help"])
        assert known.exit_code == 0, words


def test_files_named_in_the_architecture_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`((?:tests|coordinator|edge_client|docs)/[a-z_/.]+)`", text):
        assert (ROOT / name).exists(), name
