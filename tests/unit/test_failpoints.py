"""Failpoints: every name is used, every use is a name, unarmed they do nothing, armed they kill."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker_link.failpoints import FAILPOINTS, OPENING_FAILPOINTS, RELEASE_FAILPOINTS, armed_failpoints, hit

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_is_used_and_every_use_is_a_name():
    text = "".join(
        path.read_text() for package in ("coordinator", "edge_client") for path in (ROOT / package).rglob("*.py")
    )
    used = set(re.findall(r'hit\("([a-z_.]+)"\)', text))
    # These two kinds of message are watched by the name of the message.
    watched = ("coordinator.receipt", "coordinator.assignment", "device.check_in", "device.report", "device.piece")
    watched += ("coordinator.opening-request",)
    used |= {f"{kind}.{moment}" for kind in watched for moment in ("before", "after")}
    assert used == {*FAILPOINTS, *OPENING_FAILPOINTS, *RELEASE_FAILPOINTS}


def test_an_unarmed_failpoint_does_nothing():
    hit("no such name, but nobody looks")


@pytest.mark.parametrize("value", ["nowhere=1", "coordinator.fold.before", "coordinator.fold.before=0", "=1"])
def test_a_wrong_setting_is_refused(value):
    with pytest.raises(ValueError, match="failpoint"):
        armed_failpoints({"FLOCKWISE_FAILPOINTS": value})


def test_an_armed_failpoint_kills_at_the_given_pass_and_says_so(tmp_path):
    log = tmp_path / "hits"
    code = "from broker_link.failpoints import hit\nfor n in range(5):\n print(n, flush=True); hit('coordinator.fold.before')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"FLOCKWISE_FAILPOINTS": "coordinator.fold.before=3", "FLOCKWISE_FAILPOINT_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1", "2"]
    assert log.read_text() == "coordinator.fold.before\n"
