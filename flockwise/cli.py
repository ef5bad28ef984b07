"""The `flockwise` command: lazy verbs, no logic.

A verb's module is imported only when the verb is used, so that `flockwise edge` on a device never pays for, or needs,
what the coordinator imports.
"""

import importlib
import importlib.metadata
import os
import sys
from typing import Any

import click

__all__ = ["main"]

_VERBS = {
    "coordinator": ("flockwise.coordinator_commands", "coordinator", "Run the coordinator of a fleet."),
    "demo": ("flockwise.demo_command", "demo", "Train on real digits over MQTT, on this machine."),
    "directory": ("flockwise.directory_commands", "directory", "Keep the key directory, on the authority's machine."),
    "edge": ("flockwise.edge_commands", "edge", "Run and inspect the device daemon."),
    "export": ("flockwise.export_command", "export", "Turn a Keras model into a trainable TFLite file."),
    "freeze": ("flockwise.freeze_command", "freeze", "Turn a trained task into inference files for apps."),
    "helper": ("flockwise.helper_commands", "helper", "Run one of three helpers that open confidential sums."),
    "key-authority": ("flockwise.key_authority_commands", "key_authority", "Keep the keys of encrypted sums."),
    "keys": ("flockwise.keys_commands", "keys", "Make and rotate the keys that sign releases."),
    "models": ("flockwise.models_commands", "models", "List, show and compare released models."),
    "privacy": ("flockwise.privacy_commands", "privacy", "Explain and calibrate differential privacy."),
    "query": ("flockwise.query_command", "query", "Ask the fleet a question, with differential privacy."),
    "push": ("flockwise.push_command", "push", "Sign a model as a release for a fleet."),
    "rollout": ("flockwise.rollout_commands", "rollout", "Bring a release to the fleet in stages, and take it back."),
    "simulate": ("flockwise.simulate_command", "simulate", "Simulate a fleet of any size."),
}

# TensorFlow reads these when it is imported, which is later; what the user has set stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

_COORDINATOR_MODULES = {"amqtt", "dp_accounting", "keras", "matplotlib", "tensorflow", "tensorflow_federated"}


class _LazyGroup(click.Group):
    """Knows its verbs by name and imports one when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _VERBS:
            return None
        module_name, attribute, _ = _VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a verb; a device's base install says what a coordinator's verb needs, instead of a traceback."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in _COORDINATOR_MODULES:
                raise
            click.echo(
                f"error: this command needs {error.name}, which only the 'coordinator' extra brings; in a clone of the "
                "project use 'pip install uv && uv run flockwise ...' (Python 3.11)",
                err=True,
            )
            sys.exit(1)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in sorted(_VERBS.items())])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("flockwise"), prog_name="flockwise")
def main() -> None:
    """Federated learning on real devices.

    Exit codes of every command: 0 done, 1 failed (the reason is on standard error), 2 wrong usage; a command that has
    more says so in its own help.

    Example: flockwise demo
    """
