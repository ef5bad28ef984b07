"""The base install is the device: plain pip, an empty environment, no TensorFlow, and the daemon imports."""

import json
import os
import shutil
import socket
import subprocess
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib.util, json, sys
import edge_client.daemon
import flockwise.cli
from edge_client.service_unit import packaged_text, render_unit
assert render_unit() == packaged_text("flockwise-edge.service")
assert "population" in packaged_text("edge.toml")
forbidden = ["tensorflow", "tensorflow_federated", "keras", "dp_accounting", "amqtt", "matplotlib", "jax"]
print(json.dumps({
    "imported": sorted(set(forbidden) & set(sys.modules)),
    "installed": [name for name in forbidden if importlib.util.find_spec(name) is not None],
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment with the base package installed by pip alone."""
    directory = tmp_path_factory.mktemp("base-install")
    source = directory / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=ignore)
    venv.create(directory / "env", with_pip=True)
    pip = [str(directory / "env/bin/python"), "-m", "pip", "install", "--quiet", str(source)]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode != 0 and not os.environ.get("CI") and _is_network_trouble(done.stderr):
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]
    return directory / "env"


def _is_network_trouble(text: str) -> bool:
    try:
        socket.getaddrinfo("example.org", 443)
    except OSError:
        return True
    return "Temporary failure in name resolution" in text


@pytest.mark.timeout(900)
def test_the_base_install_holds_no_tensorflow_and_its_daemon_imports(environment):
    done = subprocess.run(
        [str(environment / "bin/python"), "-c", PROBE], check=False, capture_output=True, text=True, cwd=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"imported": [], "installed": []}


@pytest.mark.timeout(900)
def test_the_base_installs_command_answers_and_explains_what_it_lacks(environment):
    run = lambda *words: subprocess.run(  # noqa: E731
        [str(environment / "bin/flockwise"), *words], check=False, capture_output=True, text=True, cwd=environment
    )
    assert run("--version").returncode == 0
    assert run("edge", "--help").returncode == 0
    image = environment / "image"
    image.mkdir()
    installed = run("edge", "install", "--root", str(image), "--json")
    assert installed.returncode == 0, installed.stderr
    assert (image / "etc/systemd/system/flockwise-edge.service").exists()
    lacking = run("export", "zoo:digits_mlp", "--out", "x", "--batch-size", "8", "--learning-rate", "0.1")
    assert lacking.returncode == 1
    assert "coordinator" in lacking.stderr
    assert "Traceback" not in lacking.stderr
