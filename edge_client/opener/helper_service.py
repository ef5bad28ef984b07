"""A helper on a real broker, and what can be seen of one from outside."""

from pathlib import Path
from typing import Any, Final

from edge_client.config import EdgeConfig
from edge_client.device_link import MakeLink, paho_link
from edge_client.errors import StorageError
from edge_client.opener.helper_desk import HelperDesk
from edge_client.opener.opener_service import OpenerKeys, OpenerService
from edge_client.opener.set_book import SqliteSetBook
from edge_client.pinned_directory import PIN_FILE
from edge_client.settings import AgentSettings
from secure_sum.directory_entries import fingerprint
from secure_sum.directory_pin import decode_pin

__all__ = ["look_at_helper", "make_helper"]

_BOOK_FILE: Final = "helper_sets.sqlite"


def make_helper(
    config: EdgeConfig,
    *,
    min_contributors: int,
    make_link: MakeLink = paho_link,
    settings: AgentSettings | None = None,
) -> OpenerService:
    """A helper that is ready to serve.

    Args:
        config: As `OpenerService` takes it.
        min_contributors: The fewest whose sum it helps to open.
        make_link: Makes its link.
        settings: Its patience with transfers.

    Raises:
        EdgeClientError: As `OpenerService`; or the book cannot be opened, or is gone.
    """

    def answer(keys: OpenerKeys) -> HelperDesk:
        return HelperDesk(
            population=keys.population,
            helper_id=keys.opener_id,
            key=keys.sealing_key,
            book=SqliteSetBook(keys.home / _BOOK_FILE),
            accept_directory=keys.accept_directory,
            min_contributors=min_contributors,
        )

    return OpenerService(config, make_answer=answer, make_link=make_link, settings=settings)


def look_at_helper(home: Path) -> dict[str, Any]:
    """What a helper has committed itself to, and whom it believes. Changes nothing.

    Raises:
        StorageError: It has never run, or its book cannot be read.
        MalformedDirectory: Its pin cannot be read.
    """
    path = home / _BOOK_FILE
    if not path.exists():
        raise StorageError(f"no helper has run with {home}")
    book = SqliteSetBook(path)
    try:
        num_rounds = book.num_sets
    finally:
        book.close()
    pin_file = home / PIN_FILE
    pin = decode_pin(pin_file.read_bytes()) if pin_file.exists() else None
    return {
        "rounds_opened": num_rounds,
        "authority": "" if pin is None else fingerprint(bytes.fromhex(pin.authority_key)),
        "directory_entries": 0 if pin is None else pin.num_entries,
    }
