"""Which ops a model file is made of, and in which versions. Reads the file in place; loads no TensorFlow."""

import collections
from typing import Any, Final

from ai_edge_litert import schema_py_generated as schema

__all__ = ["FILE_IDENTIFIER", "count_ops", "min_runtime_version", "op_name", "op_versions"]

FILE_IDENTIFIER: Final = b"TFL3"
_OP_NAMES: Final = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def count_ops(model: bytes) -> dict[str, int]:
    """How often each op occurs in a model file, over all subgraphs; a custom op is named ``CUSTOM:<its name>``."""
    root = schema.Model.GetRootAsModel(model, 0)
    names = [op_name(root.OperatorCodes(index)) for index in range(root.OperatorCodesLength())]
    counts: collections.Counter[str] = collections.Counter()
    for position in range(root.SubgraphsLength()):
        graph = root.Subgraphs(position)
        counts.update(names[graph.Operators(index).OpcodeIndex()] for index in range(graph.OperatorsLength()))
    return dict(sorted(counts.items()))


def op_versions(model: bytes) -> dict[str, int]:
    """The highest version in which the file uses each op: what a runtime must know of it."""
    root = schema.Model.GetRootAsModel(model, 0)
    versions: dict[str, int] = {}
    for index in range(root.OperatorCodesLength()):
        code = root.OperatorCodes(index)
        name = op_name(code)
        versions[name] = max(versions.get(name, 0), code.Version())
    return {name: versions[name] for name in sorted(count_ops(model))}


def min_runtime_version(model: bytes) -> str:
    """The oldest TensorFlow Lite that knows these op versions, by the converter's own table; empty if it says none."""
    root = schema.Model.GetRootAsModel(model, 0)
    for index in range(root.MetadataLength()):
        entry = root.Metadata(index)
        if entry.Name() == b"min_runtime_version":
            text: bytes = root.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            return text.rstrip(b"\0").decode()
    return ""


def op_name(code: Any) -> str:
    """The name of an operator code, as read in place or unpacked into an object."""
    is_unpacked = isinstance(code, schema.OperatorCodeT)
    builtin = code.builtinCode if is_unpacked else code.BuiltinCode()
    former = code.deprecatedBuiltinCode if is_unpacked else code.DeprecatedBuiltinCode()
    name: str = _OP_NAMES[max(builtin, former)]
    if name != "CUSTOM":
        return name
    custom: bytes = code.customCode if is_unpacked else code.CustomCode()
    return f"CUSTOM:{custom.decode()}"
