"""The demo's key authority: its keys, and what devices get of them.

On the same machine and under the same operator as everything else, so that it shows how it works and protects from nobody.
"""

from pathlib import Path
from typing import Final

from edge_client.opener.key_release import issue_keys
from simulators.offline_directory import OfflineDirectory

__all__ = ["KEY_AUTHORITY_ID", "issue_demo_keys"]

KEY_AUTHORITY_ID: Final = "key-authority"


def issue_demo_keys(home: Path, entered: OfflineDirectory, work: Path) -> bytes:
    """Makes the encryption keys and releases them to the directory's devices.

    Args:
        home: The key authority's state directory, with its identity and sealing key.
        entered: The directory.
        work: Gets the files that people would hand over.

    Raises:
        EdgeClientError: A key cannot be used or kept.
        EncryptionUnavailable: TenSEAL is not installed.
    """
    directory_file = work / "directory.fwkd"
    directory_file.write_bytes(entered.data)
    release = issue_keys(
        home,
        authority_id=KEY_AUTHORITY_ID,
        directory_file=directory_file,
        authority_fingerprint=entered.authority,
        new_keys=False,
        out_file=work / "demo.fwkr",
    )
    return release.encode()
