"""Prints what a bundle's certificate says, after checking that it speaks of the files beside it."""

import hashlib
import pathlib

import click
import msgspec
import rich.console
import rich.table

from model_export.certificate import Certificate, decode_certificate
from wire_protocol import model_contract as contract

__all__ = ["explain_bundle"]


def explain_bundle(directory: pathlib.Path, *, as_json: bool) -> None:
    """Prints a bundle's certificate.

    Raises:
        click.UsageError: The directory holds no bundle, or a file is not the one that was certified.
    """
    certificate = _read(directory)
    if as_json:
        click.echo(msgspec.json.encode(certificate).decode())
        return
    console = rich.console.Console()
    table = rich.table.Table(title=f"certificate of {directory}", show_header=False)
    for name, value in _rows(certificate).items():
        table.add_row(name, value)
    console.print(table)
    for details in (_errors(certificate), _ops(certificate)):
        console.print(details)


def _errors(certificate: Certificate) -> rich.table.Table:
    table = _table("largest difference from Keras", "signature", "what it gives", "absolute", "relative")
    for error in certificate.signature_errors:
        table.add_row(error.signature, error.quantity, f"{error.absolute:.1e}", f"{error.relative:.1e}")
    return table


def _ops(certificate: Certificate) -> rich.table.Table:
    table = _table("builtin ops", "op", "count", "version")
    for name, count in certificate.op_counts.items():
        table.add_row(name, str(count), str(certificate.op_versions.get(name, "-")))
    return table


def _table(title: str, *columns: str) -> rich.table.Table:
    table = rich.table.Table(title=title)
    for column in columns:
        table.add_column(column)
    return table


def _read(directory: pathlib.Path) -> Certificate:
    try:
        certificate = decode_certificate((directory / contract.BUNDLE_CERTIFICATE).read_bytes())
        for name, certified in (
            (contract.BUNDLE_MODEL, certificate.model_sha256),
            (contract.BUNDLE_PLAN, certificate.plan_sha256),
            (contract.BUNDLE_CHECKPOINT, certificate.checkpoint_sha256),
            (contract.BUNDLE_GRAPH, certificate.graph_sha256),
        ):
            if certified and hashlib.sha256((directory / name).read_bytes()).hexdigest() != certified:
                raise click.UsageError(f"{directory / name} is not the file that was certified; export the model again")
    except OSError as error:
        raise click.UsageError(f"{directory} is not a bundle: {error}") from error
    except msgspec.MsgspecError as error:
        raise click.UsageError(f"{directory / contract.BUNDLE_CERTIFICATE} is damaged: {error}") from error
    return certificate


def _rows(certificate: Certificate) -> dict[str, str]:
    cost, allowed = certificate.step_cost, certificate.tolerances
    return {
        "parameters": f"{certificate.num_parameters:,}",
        "model file": f"{certificate.model_bytes:,} bytes, {certificate.model_gzip_bytes:,} gzipped",
        "checkpoint": f"{certificate.checkpoint_bytes:,} bytes",
        "loss": f"{certificate.loss}, read from the {certificate.loss_reads}",
        "largest loss error": f"{certificate.max_loss_error:.1e} (allowed {allowed.loss:.0e})",
        "largest gradient error": f"{certificate.max_gradient_error:.1e} (allowed {allowed.gradient:.0e})",
        "largest weight error": f"{certificate.max_weight_error:.1e} (allowed {allowed.weight:.0e})",
        "largest output error": f"{certificate.max_output_error:.1e} (allowed {allowed.output:.0e})",
        "steps compared with Keras": str(certificate.num_steps_compared),
        "training step here, 1 thread": "not measured"
        if cost is None
        else f"{cost.median_ms:.2f} ms (median of {cost.num_steps}, least {cost.min_ms:.2f}), {cost.peak_rss_mb:.0f} MB",
        "proved in LiteRT": " to ".join(certificate.proved_runtimes) or "(none: an op was in no proof)",
        "op versions are known since": f"TensorFlow Lite {certificate.min_runtime_version or '(not stated)'}",
        "made with": ", ".join(f"{name} {version}" for name, version in certificate.versions.items()),
    }
