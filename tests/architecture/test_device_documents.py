"""The documents of the device say what its commands do: checks, exit codes, and the commands to type."""

import inspect
import re
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner

from edge_client.checks.registry import GROUPS
from edge_client.service_install import commands_after_install, plan_installation
from flockwise.cli import main
from flockwise.edge_commands import edge

ROOT = Path(__file__).resolve().parents[2]
DOCTOR = (ROOT / "docs" / "reference" / "doctor.md").read_text()
INSTALL = (ROOT / "docs" / "how-to" / "install-on-a-pi.md").read_text()


def test_the_list_of_checks_is_the_code():
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| (.+) \|$", DOCTOR, re.MULTILINE)
    told = [
        (group.name, name, inspect.getdoc(check).splitlines()[0].rstrip("."))
        for group in GROUPS
        for name, check in group.checks
    ]
    assert rows[0][:2] == ("configuration", "config")
    assert rows[1:] == told


def _told_exit_codes():
    """Command -> the codes that the document gives a meaning."""
    _, _, table = DOCTOR.partition("## Exit codes")
    header, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"
    ]
    for row in rows[1:]:
        codes = {int(code) for code, meaning in zip(header[1:], row[1:], strict=True) if meaning}
        for name in re.findall(r"`([a-z-]+)`", row[0]):
            yield name, codes | {2}


def test_the_exit_codes_are_those_of_the_help():
    told = dict(_told_exit_codes())
    assert set(told) == set(edge.commands)
    for name, codes in told.items():
        text = " ".join(CliRunner().invoke(main, ["edge", name, "--help"]).output.split())
        helped = re.search(r"Exit codes: (.*?) Example: ", text).group(1)
        found = {int(code) for code in re.findall(r"(?:^|[,;] )(\d) ", helped)}
        assert found == codes, (name, helped)


def test_the_commands_to_type_are_those_that_install_prints(tmp_path):
    changes = plan_installation(tmp_path, version="1")
    for command in commands_after_install(changes, prefix=PurePosixPath("/opt/flockwise")):
        assert f"    {command}\n" in INSTALL, command


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_edge_command_in_the_documents_exists(path):
    for name in re.findall(r"flockwise edge ([a-z][a-z-]+)", path.read_text()):
        assert name in edge.commands, name
