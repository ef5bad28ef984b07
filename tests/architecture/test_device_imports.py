"""The device never imports TensorFlow, and its idle daemon not even LiteRT: tried in fresh interpreters."""

import json
import subprocess
import sys

import pytest

_FORBID = """
import sys

class Forbidden:
    names = {"tensorflow", "tensorflow_federated", "keras", "dp_accounting", "jax", "amqtt", "matplotlib"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is forbidden on a device")
        return None

sys.meta_path.insert(0, Forbidden())
"""


def _fresh(program):
    done = subprocess.run([sys.executable, "-c", _FORBID + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_guard_itself_bites():
    done = subprocess.run([sys.executable, "-c", _FORBID + "import keras"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "keras is forbidden on a device" in done.stderr


@pytest.mark.parametrize("package", ["edge_client", "wire_protocol", "broker_link", "integer_noise", "secure_sum"])
def test_every_module_of_the_device_imports_with_tensorflow_forbidden(package):
    modules = _fresh(f"""
import importlib, json, pkgutil, {package}
names = sorted(module.name for module in pkgutil.walk_packages({package}.__path__, "{package}."))
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
""")
    assert len(modules) > (5 if package not in {"integer_noise", "secure_sum"} else 1)
    assert "edge_client.litert_trainer" in modules or package != "edge_client"


def test_the_idle_daemon_imports_neither_litert_nor_the_command_line():
    loaded = _fresh("""
import json
import edge_client.daemon
import broker_link.paho_link
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
""")
    assert {"numpy", "msgspec", "safetensors", "paho"} <= set(loaded)
    assert not {"ai_edge_litert", "click", "rich", "tensorflow", "keras"} & set(loaded)


def test_the_edge_commands_run_with_tensorflow_forbidden():
    loaded = _fresh("""
import json
from click.testing import CliRunner
from flockwise.cli import main
for words in (["edge", "--help"], ["edge", "run", "--help"], ["edge", "show-config", "--config", "none.toml"]):
    CliRunner().invoke(main, words)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
""")
    assert "edge_client" in loaded
    assert "ai_edge_litert" not in loaded


def test_the_trainers_child_starts_with_tensorflow_forbidden():
    loaded = _fresh("""
import json
import edge_client.trainer_child
from edge_client.litert_trainer import LiteRtTrainer
from ai_edge_litert.interpreter import Interpreter
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
""")
    assert "ai_edge_litert" in loaded
    assert "tensorflow" not in loaded


def test_integer_noise_loads_numpy_and_cryptography_and_nothing_of_ours():
    loaded = _fresh("""
import json
import integer_noise.noise_tables
import integer_noise.secure_random
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
""")
    assert {"numpy", "cryptography", "integer_noise"} <= set(loaded)
    ours = {
        "broker_link",
        "coordinator",
        "edge_client",
        "flockwise",
        "model_export",
        "secure_sum",
        "simulators",
        "wire_protocol",
    }
    assert not ours & set(loaded)
    assert not {"msgspec", "paho", "safetensors", "scipy"} & set(loaded)


def test_secure_sums_load_nothing_of_ours_and_tenseal_only_when_something_is_encrypted():
    loaded = _fresh("""
import importlib, json, pkgutil, secure_sum
for module in pkgutil.iter_modules(secure_sum.__path__, "secure_sum."):
    importlib.import_module(module.name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
""")
    assert {"cryptography", "msgspec", "secure_sum"} <= set(loaded)
    ours = {
        "broker_link",
        "coordinator",
        "edge_client",
        "flockwise",
        "integer_noise",
        "model_export",
        "simulators",
        "wire_protocol",
    }
    assert not ours & set(loaded)
    assert not {"paho", "safetensors", "scipy", "tenseal"} & set(loaded)
