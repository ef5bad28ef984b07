"""A key authority on a real broker, and what can be seen of one from outside."""

import hashlib
from pathlib import Path
from typing import Any, Final

from edge_client.config import EdgeConfig
from edge_client.device_link import MakeLink, paho_link
from edge_client.errors import IdentityError
from edge_client.opener.encryption_key_file import EncryptionKeyFile
from edge_client.opener.key_desk import KeyDesk
from edge_client.opener.key_release import ISSUED_DIRECTORY, released_by
from edge_client.opener.opener_service import OpenerKeys, OpenerService
from edge_client.opener.set_book import SqliteSetBook
from edge_client.opener.wrong_totals import KeyBook
from edge_client.settings import AgentSettings
from edge_client.state_writer import StateWriter
from secure_sum.directory_entries import MemberRole, fingerprint
from secure_sum.key_rules import MAX_WRONG_TOTALS

__all__ = ["look_at_key_authority", "make_key_authority"]

_BOOK_FILE: Final = "totals.sqlite"
_WRONG_FILE: Final = "wrong_totals.sqlite"


def make_key_authority(
    config: EdgeConfig,
    *,
    min_contributors: int,
    make_link: MakeLink = paho_link,
    settings: AgentSettings | None = None,
) -> OpenerService:
    """A key authority that is ready to serve.

    Args:
        config: As `OpenerService` takes it.
        min_contributors: The fewest whose sum it decrypts.
        make_link: Makes its link.
        settings: Its patience with transfers.

    Raises:
        EdgeClientError: As `OpenerService`; or there are no keys, or a book cannot be opened, or is gone.
        DirectoryError: The directory with which the keys were issued is not believed any more.
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def answer(keys: OpenerKeys) -> KeyDesk:
        material = EncryptionKeyFile(keys.home, writer=StateWriter()).load()
        try:
            issued = (keys.home / ISSUED_DIRECTORY).read_bytes()
        except OSError as error:
            raise IdentityError(f"no keys were issued from {keys.home}: 'flockwise key-authority issue'") from error
        directory = keys.accept_directory(issued)
        own = directory.member(keys.opener_id, MemberRole.KEY_AUTHORITY)
        if own.sealing_key != keys.sealing_key.public_key().public_bytes_raw():
            raise IdentityError("the keys were issued with another sealing key: have it rotated, and issue them anew")
        return KeyDesk(
            population=keys.population,
            authority_id=keys.opener_id,
            sealing_key=keys.sealing_key,
            material=material,
            book=_book(keys.home, material.public_key),
            directory=directory,
            releases=released_by(keys.home),
            min_contributors=min_contributors,
        )

    return OpenerService(config, make_answer=answer, make_link=make_link, settings=settings)


def look_at_key_authority(home: Path) -> dict[str, Any]:
    """What a key authority has committed itself to. Changes nothing but a missing book.

    Raises:
        IdentityError: It has no keys, or they cannot be used.
        StorageError: Its books cannot be read.
    """
    from secure_sum.key_directory import decode_directory

    material = EncryptionKeyFile(home, writer=StateWriter()).load()
    sets = SqliteSetBook(home / _BOOK_FILE)
    wrong = KeyBook(home / _WRONG_FILE, sets=sets, key_id=_key_id(material.public_key))
    try:
        num_rounds, num_wrong = sets.num_sets, wrong.num_wrong_totals()
    finally:
        wrong.close()
        sets.close()
    directory = decode_directory((home / ISSUED_DIRECTORY).read_bytes())
    return {
        "authority": fingerprint(directory.authority_key),
        "devices": [member.member_id for member in directory.members_with(MemberRole.DEVICE)],
        "rounds": num_rounds,
        "wrong_totals": num_wrong,
        "wrong_totals_allowed": MAX_WRONG_TOTALS,
        "has_stopped": num_wrong >= MAX_WRONG_TOTALS,
    }


def _book(home: Path, public_key: bytes) -> KeyBook:
    return KeyBook(home / _WRONG_FILE, sets=SqliteSetBook(home / _BOOK_FILE), key_id=_key_id(public_key))


def _key_id(public_key: bytes) -> bytes:
    return hashlib.sha256(public_key).digest()
