"""A process that is one opener: `python -m simulators.helper_host KIND HOME BROKER_URL POPULATION ID MIN_CONTRIBUTORS AUTHORITY`.

KIND is ``helper`` or ``key-authority``.

The end of its standard input tells it to stop.
"""

import sys
import threading
from pathlib import Path

from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig, PrivacySection
from edge_client.device_log import log_to_stderr
from edge_client.opener.helper_service import make_helper
from edge_client.opener.key_service import make_key_authority

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Runs the opener until standard input ends."""
    kind, home, url, population, helper_id, min_contributors, authority = arguments
    log_to_stderr("info", style="text")
    config = EdgeConfig(
        device=DeviceSection(id=helper_id, population=population, state_dir=str(Path(home).absolute())),
        broker=BrokerSection(url=url),
        data=DataSection(path=home),
        privacy=PrivacySection(authority=authority),
    )
    make = {"helper": make_helper, "key-authority": make_key_authority}[kind]
    service = make(config, min_contributors=int(min_contributors))

    def wait_for_the_end() -> None:
        sys.stdin.read()
        service.stop()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    service.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
