"""The five files of an export, written together or not at all."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Final

from model_export.whole_directory import refuse_strange_files, write_directory
from wire_protocol import model_contract as contract

__all__ = ["Bundle", "refuse_other_files", "write_bundle"]

_NAMES: Final = frozenset(
    (
        contract.BUNDLE_MODEL,
        contract.BUNDLE_PLAN,
        contract.BUNDLE_CHECKPOINT,
        contract.BUNDLE_GRAPH,
        contract.BUNDLE_CERTIFICATE,
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The contents of the files."""

    model: bytes
    plan: bytes
    checkpoint: bytes
    graph: bytes
    certificate: bytes

    @property
    def files(self) -> Mapping[str, bytes]:
        """File name -> contents."""
        return {
            contract.BUNDLE_MODEL: self.model,
            contract.BUNDLE_PLAN: self.plan,
            contract.BUNDLE_CHECKPOINT: self.checkpoint,
            contract.BUNDLE_GRAPH: self.graph,
            contract.BUNDLE_CERTIFICATE: self.certificate,
        }


def write_bundle(bundle: Bundle, directory: pathlib.Path) -> None:
    """Writes a bundle; an earlier one in the same place is replaced as a whole.

    Raises:
        NotABundle: The directory holds files of other names; nothing was changed.
    """
    write_directory(bundle.files, directory, known=_NAMES)


def refuse_other_files(directory: pathlib.Path) -> None:
    """Refuses a directory that a bundle must not replace.

    Raises:
        NotABundle: It is a file, or holds files of other names.
    """
    refuse_strange_files(directory, known=_NAMES)
