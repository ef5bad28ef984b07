"""What `doctor` checks about who can read what: the network, secrets, state, settings and examples."""

import stat
from pathlib import Path
from typing import Final

from broker_link.broker_url import parse_broker_url
from broker_link.tls import is_loopback
from edge_client.checks.state import state_path
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.errors import IdentityError
from edge_client.identity import IdentityStore
from edge_client.state_writer import StateWriter

__all__ = ["PRIVACY_CHECKS"]

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def check_encryption(subject: Subject) -> Finding:
    """Whether what goes over the network is encrypted, unless it stays on this machine."""
    url = parse_broker_url(subject.config.broker.url)
    if url.is_tls or is_loopback(url.host):
        return ok(f"{url}")
    return warn(f"{url}: updates and passwords cross the network in the clear", "use an mqtts:// broker")


def check_password(subject: Subject) -> Finding:
    """Whether the password is for its owner alone."""
    return _secret(subject.config.broker.password_file, "broker.password_file")


def check_key(subject: Subject) -> Finding:
    """Whether the device's private key is for its owner alone."""
    return _secret(subject.config.broker.key_file, "broker.key_file")


def _secret(name: str, key: str) -> Finding:
    if not name:
        return skip(f"no {key} is configured")
    path = Path(name)
    try:
        mode = path.stat().st_mode
        path.open("rb").close()
    except PermissionError as error:
        return fail(str(error), "run doctor with sudo; the service gets the file from systemd (LoadCredential)")
    except OSError as error:
        return fail(str(error), f"set {key} to a file that is there")
    if mode & _OTHERS:
        return warn(f"{path} can be read by others ({stat.filemode(mode)})", f"sudo chmod 600 {path}")
    return ok(f"{path} is readable by its owner alone")


def check_identity(subject: Subject) -> Finding:
    """Whether the key that signs this device's messages can be used, and by this device alone."""
    directory = state_path(subject)
    credentials = str(subject.config_path.parent / "credentials") if subject.config_path is not None else None
    store = IdentityStore(directory, writer=StateWriter(), clock=subject.wall_clock, credentials=credentials)
    try:
        has_key = store.has_key()
    except IdentityError as error:
        return fail(str(error), "mend that; a new key needs a new token: flockwise edge enrol")
    if not has_key:
        return skip("not enrolled: a coordinator with a roster refuses this device (flockwise edge enrol)")
    return ok("this device signs its messages")


def check_state_private(subject: Subject) -> Finding:
    """Whether the state directory is closed to others: updates wait in it, and examples may lie there."""
    path = state_path(subject)
    if not path.exists():
        return skip(f"{path} is not there yet")
    mode = path.stat().st_mode
    if mode & _OTHERS:
        return warn(f"{path} is open to others ({stat.filemode(mode)})", f"sudo chmod 700 {path}")
    return ok(f"{path} is closed to others")


def check_config_private(subject: Subject) -> Finding:
    """Whether a password stands in a configuration that others can read."""
    path = subject.config_path
    if path is None or parse_broker_url(subject.config.broker.url).password is None:
        return ok("the configuration holds no password")
    mode = path.stat().st_mode
    if mode & _OTHERS:
        remedy = "take the login out of broker.url: broker.username, and the password in credentials/broker-password"
        return warn(f"broker.url holds a password, and {path} can be read by others ({stat.filemode(mode)})", remedy)
    return ok(f"{path} is readable by its owner alone")


def check_data_private(subject: Subject) -> Finding:
    """Whether every user of this machine can read the examples."""
    path = Path(subject.config.data.path)
    if not path.exists():
        return skip(f"there is nothing at {path}")
    parts = [path, *path.iterdir()] if path.is_dir() else [path]
    if all(_is_open_to_all(part) for part in parts):
        return warn(
            f"every user of this machine can read {path}", f"sudo chmod -R go-rwx {path}, owned by the daemon's user"
        )
    return ok(f"not every user can read {path}")


def _is_open_to_all(path: Path) -> bool:
    """Whether anybody can get to a file or directory, and read it."""
    path = path.resolve()
    is_passable = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return is_passable and bool(path.stat().st_mode & stat.S_IROTH)


PRIVACY_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("encryption", check_encryption),
    ("password", check_password),
    ("key", check_key),
    ("identity", check_identity),
    ("state_private", check_state_private),
    ("config_private", check_config_private),
    ("data_private", check_data_private),
)
"""Name and function of each check, in the order in which they are made."""
