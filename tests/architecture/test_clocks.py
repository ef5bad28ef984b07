"""Deadlines are monotonic: the wall clock is read in a few named modules, none of which decides by it unchecked."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "broker_link", "coordinator", "edge_client", "flockwise", "integer_noise", "model_export", "secure_sum",
    "simulators", "wire_protocol",
)  # fmt: skip
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_READ_IT = {
    "edge_client/time_floor.py": "checks it against the floor, for everybody else",
    "edge_client/doctor.py": "doctor shows it and says whether it can be right",
    "edge_client/identity.py": "a number to begin epochs with, if none is stored",
    "coordinator/server.py": "a token's expiry, on the coordinator's machine",
    "coordinator/releases/serving.py": "expiry dates of release metadata, on the owner's machine",
    "flockwise/keys_commands.py": "expiry dates of release metadata, on the owner's machine",
    "simulators/trials/push_trial.py": "expiry dates of release metadata, on one machine",
    "simulators/offline_enrolment.py": "a token's expiry, on one machine",
    "flockwise/broker_commands.py": "a certificate's validity, on the operator's machine",
    "flockwise/directory_commands.py": "the authority's clock, written into entries for people to read",
    "flockwise/probe_command.py": "a certificate's validity, on the operator's machine",
    "flockwise/roster_commands.py": "a token's expiry, on the coordinator's machine",
}
ALWAYS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
WITHOUT_ARGUMENT = {"time.localtime": 1, "time.gmtime": 1, "time.ctime": 1, "time.asctime": 1, "time.strftime": 2}
FROM_TIME = {name.partition(".")[2] for name in (*ALWAYS, *WITHOUT_ARGUMENT) if name.startswith("time.")}


def _dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def wall_clock_reads(source):
    """Lines on which a module takes the wall clock, or the function that reads it, in hand."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for alias in node.names if alias.name in FROM_TIME]
        elif isinstance(node, ast.Attribute):
            name = ".".join(_dotted(node).split(".")[-2:])
            found += [node.lineno] if name in ALWAYS else []
        elif isinstance(node, ast.Call):
            name = _dotted(node.func)
            found += [node.lineno] if len(node.args) < WITHOUT_ARGUMENT.get(name, 0) else []
    return sorted(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_wall_clock_is_read_in_named_modules_alone(path):
    name = str(path.relative_to(ROOT))
    lines = wall_clock_reads(path.read_text())
    assert not lines or name in MAY_READ_IT, f"{name}:{lines}: use time.monotonic(), or a WallTime from a TimeFloor"


def test_the_named_modules_still_need_their_leave():
    assert [name for name in MAY_READ_IT if not wall_clock_reads((ROOT / name).read_text())] == []


@pytest.mark.parametrize(
    "source",
    ["import time\nx = time.time()", "from time import time", "def f(clock=time.time): pass", "datetime.now(UTC)",
     "datetime.datetime.now()", "time.strftime('%Y')", "time.localtime()", "date.today()", "time.time_ns()"],
)  # fmt: skip
def test_the_guard_sees_every_way_to_read_it(source):
    assert wall_clock_reads(source)


@pytest.mark.parametrize(
    "source",
    ["time.monotonic()", "time.localtime(x)", "datetime.fromtimestamp(x, UTC)", "time.perf_counter()",
     "time.strftime('%Y', time.gmtime(x))", "self.time.now", "virtual.time.after(3)"],
)  # fmt: skip
def test_the_guard_leaves_the_rest_alone(source):
    assert not wall_clock_reads(source)
