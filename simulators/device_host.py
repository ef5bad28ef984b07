"""One process of a device fleet: runs the daemons of the configuration files it is given, a thread each.

`python -m simulators.device_host CONFIG.toml ...`; the end of standard input stops them all. A daemon that fails ends
the process with exit code 1, so that the fleet's owner notices.
"""

import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from edge_client.config_loader import load_config
from edge_client.daemon import Daemon

__all__ = ["main"]

_LOG = logging.getLogger(__name__)


def main(paths: Sequence[str]) -> int:
    """Runs the daemons until standard input ends; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(threadName)s %(levelname)s %(message)s"
    )
    # A device's settings are those of its file: this machine's own must not leak into a simulated one.
    daemons = [Daemon(load_config(Path(path), {})) for path in paths]
    failed = threading.Event()
    threads = [
        threading.Thread(target=_serve, args=(daemon, failed), name=daemon.agent.channel.device_id)
        for daemon in daemons
    ]
    for thread in threads:
        thread.start()
    threading.Thread(target=_stop_at_end_of_input, args=(daemons,), daemon=True).start()
    for thread in threads:
        thread.join()
    return 1 if failed.is_set() else 0


def _serve(daemon: Daemon, failed: threading.Event) -> None:
    try:
        daemon.serve()
    except Exception:  # noqa: BLE001 - a device that dies must be seen, whatever it died of
        _LOG.critical("daemon_failed device_id=%s", daemon.agent.channel.device_id, exc_info=True)
        failed.set()
        # The others would go on without it, and nobody would know.
        os._exit(1)


def _stop_at_end_of_input(daemons: Sequence[Daemon]) -> None:
    sys.stdin.buffer.read()
    for daemon in daemons:
        daemon.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
