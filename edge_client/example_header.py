"""The header of a directory of examples: what ``examples.json`` may say."""

import math
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from edge_client.errors import DataFormatError, DataNotFound

__all__ = ["HEADER_FILE", "ExamplesHeader", "read_header"]

HEADER_FILE: Final = "examples.json"
_MAX_HEADER_BYTES: Final = 65536

_Dim = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
_HexDigest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$")]


class ExamplesHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``examples.json`` says."""

    format: Literal[1] = 1
    num_examples: Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
    x_dtype: Literal["float32", "uint8"]
    x_shape: Annotated[tuple[_Dim, ...], msgspec.Meta(min_length=1, max_length=7)]
    y_dtype: Literal["int32", "int64", "uint8", "float32"] = "int32"
    y_shape: Annotated[tuple[_Dim, ...], msgspec.Meta(max_length=1)] = ()
    scale: float = 1.0
    x_file: _FileName = "x.bin"
    y_file: _FileName = "y.bin"
    x_sha256: _HexDigest = ""
    y_sha256: _HexDigest = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError("scale must be a number other than 0")
        if self.y_shape and self.y_dtype != "float32":
            raise ValueError("y_shape is for float32 labels; class numbers are one for each example")


def read_header(directory: Path) -> ExamplesHeader:
    """Reads and checks ``examples.json``.

    Raises:
        DataNotFound: There is none.
        DataFormatError: It says something that is not allowed.
    """
    path = directory / HEADER_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_HEADER_BYTES)
    except FileNotFoundError as error:
        raise DataNotFound(
            f"{directory} has no {HEADER_FILE}; import examples with: flockwise edge import-data FILE --out {directory}"
        ) from error
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error
    try:
        return msgspec.json.decode(data, type=ExamplesHeader)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataFormatError(f"{path}: {error}") from error
