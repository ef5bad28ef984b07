"""The compiled server side as a value: graphs with their tensor names, written to and read from a directory.

A directory holds `schema.json` and one serialized GraphDef per graph (130 KB in all for a small CNN; the size does not
depend on the number of parameters). A GraphDef is code: run none from an untrusted place. The SHA-256 digests in the
schema guard against damage, not against malice.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from coordinator.aggregation import LeafSpec
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import CheckpointDamaged
from wire_protocol.plan import TensorSpec

__all__ = ["CompiledGraph", "RoundGraphs", "ServerArtefact", "read_server_artefact", "write_server_artefact"]

_SCHEMA_NAME: Final = "schema.json"
_FORMAT: Final = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CompiledGraph:
    """One TensorFlow computation: flat tensors in, flat tensors out."""

    graph_def: bytes
    """A serialized ``tensorflow.GraphDef``."""
    feeds: tuple[str, ...]
    """Names of the input tensors, in the order of the arguments."""
    fetches: tuple[str, ...]
    """Names of the output tensors."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundGraphs:
    """A MapReduceForm, flat: ``prepare``, then ``work`` and ``accumulate`` per report, then ``report`` and ``update``.

    See TFF's ``tff.backends.mapreduce.MapReduceForm``. All of it is plain addition: no secure sums.
    """

    prepare: CompiledGraph
    """state -> broadcast"""
    work: CompiledGraph
    """report, broadcast -> uplink (and nothing more)"""
    zero: CompiledGraph
    """-> accumulator"""
    accumulate: CompiledGraph
    """accumulator, uplink -> accumulator"""
    report: CompiledGraph
    """accumulator -> aggregate"""
    update: CompiledGraph
    """state, aggregate -> state, measurements"""
    state_leaves: tuple[LeafSpec, ...]
    accumulator_leaves: tuple[LeafSpec, ...]
    measurements: tuple[str, ...]
    """Paths of what ``update`` returns after the state."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServerArtefact:
    """Everything a coordinator needs to aggregate, compiled."""

    spec: AggregationSpec
    weights: tuple[TensorSpec, ...]
    initialize: CompiledGraph
    """-> training state, with weights of zero"""
    training: RoundGraphs
    evaluation: RoundGraphs
    """Its state is one int32 counter."""


_PIECES: Final = ("prepare", "work", "zero", "accumulate", "report", "update")


class _GraphEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the schema says of one GraphDef file."""

    sha256: str
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]


class _RoundEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the schema says of a round."""

    state_leaves: tuple[LeafSpec, ...]
    accumulator_leaves: tuple[LeafSpec, ...]
    measurements: tuple[str, ...]


class _Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of ``schema.json``."""

    format: Literal[1]
    spec: AggregationSpec
    weights: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    training: _RoundEntry
    evaluation: _RoundEntry
    graphs: dict[str, _GraphEntry]


def write_server_artefact(artefact: ServerArtefact, directory: Path) -> None:
    """Writes an artefact; the schema goes last, so that a directory without one is no artefact.

    Args:
        artefact: What to write.
        directory: Made if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graphs: dict[str, _GraphEntry] = {}
    for name, graph in _named_graphs(artefact):
        (directory / f"{name}.pb").write_bytes(graph.graph_def)
        digest = hashlib.sha256(graph.graph_def).hexdigest()
        graphs[name] = _GraphEntry(sha256=digest, feeds=graph.feeds, fetches=graph.fetches)
    schema = _Schema(
        format=_FORMAT,
        spec=artefact.spec,
        weights=artefact.weights,
        training=_round_entry(artefact.training),
        evaluation=_round_entry(artefact.evaluation),
        graphs=graphs,
    )
    (directory / _SCHEMA_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n")


def read_server_artefact(directory: Path) -> ServerArtefact:
    """Reads what `write_server_artefact` wrote.

    Raises:
        CheckpointDamaged: A file is missing, altered or of another format; the message names it.
    """
    path = directory / _SCHEMA_NAME
    try:
        schema = msgspec.json.decode(path.read_bytes(), type=_Schema)
        graphs = {name: _read_graph(directory / f"{name}.pb", entry) for name, entry in schema.graphs.items()}
        return ServerArtefact(
            spec=schema.spec,
            weights=schema.weights,
            initialize=graphs["initialize"],
            training=_round_graphs("training", schema.training, graphs),
            evaluation=_round_graphs("evaluation", schema.evaluation, graphs),
        )
    except OSError as error:
        raise CheckpointDamaged(f"cannot read {error.filename}: {error.strerror}; compile the server again") from error
    except (msgspec.DecodeError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointDamaged(f"{path} is no server artefact: {error}; compile the server again") from error


def _named_graphs(artefact: ServerArtefact) -> Iterator[tuple[str, CompiledGraph]]:
    yield "initialize", artefact.initialize
    for kind, graphs in (("training", artefact.training), ("evaluation", artefact.evaluation)):
        for piece in _PIECES:
            yield f"{kind}_{piece}", getattr(graphs, piece)


def _round_entry(graphs: RoundGraphs) -> _RoundEntry:
    return _RoundEntry(
        state_leaves=graphs.state_leaves,
        accumulator_leaves=graphs.accumulator_leaves,
        measurements=graphs.measurements,
    )


def _round_graphs(kind: str, entry: _RoundEntry, graphs: dict[str, CompiledGraph]) -> RoundGraphs:
    return RoundGraphs(
        **{piece: graphs[f"{kind}_{piece}"] for piece in _PIECES},
        state_leaves=entry.state_leaves,
        accumulator_leaves=entry.accumulator_leaves,
        measurements=entry.measurements,
    )


def _read_graph(path: Path, entry: _GraphEntry) -> CompiledGraph:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CheckpointDamaged(f"{path} does not match its digest in {_SCHEMA_NAME}; compile the server again")
    return CompiledGraph(graph_def=data, feeds=entry.feeds, fetches=entry.fetches)
