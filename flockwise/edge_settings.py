"""How the commands of `flockwise edge` take the device's configuration."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from edge_client.config import EdgeConfig

__all__ = ["config_option", "find_config", "load"]

config_option: Final = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), envvar="FLOCKWISE_CONFIG",
    help="TOML file. [default: ~/.config/flockwise/edge.toml or /etc/flockwise/edge.toml, if there is one]",
)  # fmt: skip


def find_config(config_path: Path | None) -> Path | None:
    """The named file, or the one in a usual place; None if everything comes from the environment."""
    from edge_client.config_loader import default_config_path

    return config_path or default_config_path(os.environ)


def load(config_path: Path | None) -> "EdgeConfig":
    """Loads and checks the configuration.

    Raises:
        ConfigError: It cannot be read, or is not valid.
    """
    from edge_client.config_loader import load_config

    return load_config(find_config(config_path), os.environ)
