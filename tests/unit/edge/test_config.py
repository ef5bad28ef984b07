"""Configuration: what is not allowed is refused, and the complaint says where and what instead."""

from pathlib import Path

import pytest

from edge_client.broker_access import broker_url_with_login
from edge_client.config import config_as_dict
from edge_client.config_loader import default_config_path, load_config
from edge_client.errors import ConfigError

MINIMAL = """
[device]
population = "digits"
[broker]
url = "mqtts://broker.example"
[data]
path = "data"
"""


def _load(tmp_path, text=MINIMAL, environ=None):
    path = tmp_path / "client.toml"
    path.write_text(text)
    return load_config(path, environ or {})


def test_a_minimal_file_has_sensible_defaults_and_paths_beside_it(tmp_path):
    config = _load(tmp_path, environ={"XDG_STATE_HOME": "/state"})
    assert config.device.population == "digits"
    assert config.device.id == ""
    assert config.device.state_dir == "/state/flockwise"
    assert config.data.path == str(tmp_path / "data")
    assert config.training.trainer == "litert"
    assert config.training.num_threads == 1


def test_systemd_gives_the_state_directory():
    environ = {
        "STATE_DIRECTORY": "/var/lib/flockwise:/var/lib/other",
        "FLOCKWISE__DEVICE__POPULATION": "digits",
        "FLOCKWISE__BROKER__URL": "mqtts://b",
        "FLOCKWISE__DATA__PATH": "/data",
    }
    config = load_config(None, environ)
    assert config.device.state_dir == "/var/lib/flockwise"
    assert config.data.path == "/data"


def test_the_environment_wins_over_the_file(tmp_path):
    environ = {"FLOCKWISE__TRAINING__NUM_THREADS": "4", "FLOCKWISE__DEVICE__ID": "pi-7", "OTHER": "x"}
    config = _load(tmp_path, MINIMAL + "[training]\nnum_threads = 2\n", environ)
    assert config.training.num_threads == 4
    assert config.device.id == "pi-7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[divice]\nid = 'a'", "no section [divice]; did you mean 'device'?"),
        ("[training]\nnum_treads = 1", "training.num_treads: there is no such key in [training]; did you mean 'num_threads'?"),
        ("[training]\nzzz = 1", "known are trainer, num_threads"),
        ("[training]\nnum_threads = 0", "training.num_threads = 0 is not allowed: Expected `int` >= 1"),
        ("[training]\nnum_threads = '2'", "training.num_threads = '2' is not allowed: Expected `int`, got `str`"),
        ("[training]\ntrainer = 'torch'", "training.trainer = 'torch' is not allowed"),
        ("[training]\nmemory_limit_mb = 20", "memory_limit_mb must be 0 or at least 256"),
        ("[training]\ntime_limit_s = inf", "must be finite"),
        ("training = 1", "training = 1 is not allowed"),
        ("[[training]]\nx = 1", "[training] is a section"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named_with_what_is(tmp_path, text, words):
    # A bare key must stand before the first section.
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, f"{text}\n{MINIMAL}")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('population = "digits"', "", "device.population is missing: put it under [device], or set FLOCKWISE__DEVICE"),
        ('population = "digits"', 'population = "a/b"', "population id 'a/b' is not allowed"),
        ('population = "digits"', 'population = "p"\nid = "#"', "device id '#' is not allowed"),
        ('population = "digits"', 'population = "p"\nstate_dir = 3', "device.state_dir = 3 is not allowed"),
        ("mqtts://broker.example", "http://broker.example", "use mqtt://host:port, or mqtts://host:port"),
        ("mqtts://broker.example", "mqtts://broker.example:99999", "broker address"),
        ('path = "data"', "", "data.path is missing"),
        ('"mqtts://broker.example"', '"mqtt://127.0.0.1"\nca_file = "ca.pem"', "use mqtts:// for TLS"),
        ('"mqtts://broker.example"', '"mqtts://b"\nusername = "me"', "username and password_file belong together"),
        ("mqtts://broker.example", "mqtt://broker.example", "broker.allow_plaintext = true allows it"),
        ("mqtts://broker.example", "mqtt://10.0.0.7", "sends everything, passwords too, readable"),
        ("mqtts://broker.example", "mqtt://localhost.example", "use mqtts://"),
        ('"mqtts://broker.example"', '"mqtts://b"\ncert_file = "a.crt"', "cert_file and key_file belong together"),
        ('"mqtts://broker.example"', "17", "broker.url = ... is not allowed"),
    ],
)
def test_required_and_checked_values(tmp_path, old, new, words):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, MINIMAL.replace(old, new))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FLOCKWISE__BROKER__ULR", "x", "did you mean 'url'?"),
        ("FLOCKWISE__BORKER__URL", "x", "did you mean 'broker'?"),
        ("FLOCKWISE__URL", "x", "write FLOCKWISE__SECTION__KEY"),
        ("FLOCKWISE__TRAINING__NUM_THREADS", "many", "training.num_threads = 'many' is not allowed"),
    ],
)
def test_variables_that_are_wrong_are_refused_by_name(tmp_path, variable, value, words):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, environ={variable: value})
    assert variable in str(caught.value)
    assert words in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        _load(tmp_path, "[device\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


def test_the_default_file_is_the_users_then_the_machines(tmp_path):
    assert default_config_path({"FLOCKWISE_CONFIG": "/x/y.toml"}) == Path("/x/y.toml")
    (tmp_path / "flockwise").mkdir()
    (tmp_path / "flockwise" / "edge.toml").write_text(MINIMAL)
    assert default_config_path({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "flockwise" / "edge.toml"


def test_the_password_comes_from_its_file_and_is_never_shown(tmp_path):
    (tmp_path / "secret").write_text("p@ss:w/rd\n")
    login = 'url = "mqtts://broker.example"\nusername = "me"\npassword_file = "secret"'
    config = _load(tmp_path, MINIMAL.replace('url = "mqtts://broker.example"', login))
    assert broker_url_with_login(config.broker) == "mqtts://me:p%40ss%3Aw%2Frd@broker.example:8883"
    inline = _load(tmp_path, MINIMAL.replace("mqtts://broker", "mqtts://me:hunter2@broker"))
    assert "hunter2" not in str(config_as_dict(inline))
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match="password_file"):
        broker_url_with_login(config.broker)


def test_a_password_in_a_bad_url_is_not_repeated_by_the_complaint(tmp_path):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, MINIMAL.replace("mqtts://broker.example", "mqtts://me:hunter2@broker.example/path"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["mqtt://localhost", "mqtt://127.0.0.9:1884", "mqtt://[::1]"])
def test_plaintext_is_fine_as_long_as_it_stays_on_this_machine(tmp_path, url):
    assert _load(tmp_path, MINIMAL.replace("mqtts://broker.example", url)).broker.url == url


def test_plaintext_to_another_machine_can_be_allowed_by_name(tmp_path):
    allowed = 'url = "mqtt://broker.example"\nallow_plaintext = true'
    assert _load(tmp_path, MINIMAL.replace('url = "mqtts://broker.example"', allowed)).broker.allow_plaintext


def test_a_user_without_a_password_file_has_the_services_credential(tmp_path):
    (tmp_path / "edge.toml").write_text(
        '[device]\npopulation = "p"\n[broker]\nurl = "mqtts://b"\nusername = "me"\n[data]\npath = "d"\n'
    )
    with pytest.raises(ConfigError, match="belong together"):
        load_config(tmp_path / "edge.toml", {})
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "broker-password").write_text("installed\n")
    found = load_config(tmp_path / "edge.toml", {}).broker.password_file
    assert found == str(tmp_path / "credentials" / "broker-password")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "broker-password").write_text("shown by systemd\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "run")}
    assert load_config(tmp_path / "edge.toml", environ).broker.password_file == str(
        tmp_path / "run" / "broker-password"
    )
    (tmp_path / "edge.toml").write_text(
        (tmp_path / "edge.toml").read_text().replace('"me"', '"me"\npassword_file = "x"')
    )
    assert load_config(tmp_path / "edge.toml", environ).broker.password_file == str(tmp_path / "x")


def test_a_certificate_without_a_key_file_has_the_services_key_and_an_empty_credential_is_none(tmp_path):
    (tmp_path / "edge.toml").write_text(
        '[device]\npopulation = "p"\n[broker]\nurl = "mqtts://b"\ncert_file = "c.pem"\n[data]\npath = "d"\n'
    )
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "device.key").write_text("\n")
    with pytest.raises(ConfigError, match="belong together"):
        load_config(tmp_path / "edge.toml", {})
    (tmp_path / "credentials" / "device.key").write_text("-----BEGIN")
    assert load_config(tmp_path / "edge.toml", {}).broker.key_file == str(tmp_path / "credentials" / "device.key")
