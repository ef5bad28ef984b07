"""How a device reaches its broker: the link that its configuration describes."""

import importlib.metadata
from collections.abc import Callable
from typing import TypeAlias

from broker_link.link import BrokerLink, EventSink
from edge_client.broker_access import broker_url_with_login, client_certificate
from edge_client.channel import DeviceChannel
from edge_client.config import EdgeConfig

__all__ = ["MakeLink", "client_version", "paho_link"]

MakeLink: TypeAlias = Callable[[EdgeConfig, DeviceChannel, EventSink], BrokerLink]
"""Makes the link of a device; events go to the sink."""


def client_version() -> str:
    """The installed version of this package."""
    try:
        return importlib.metadata.version("flockwise")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def paho_link(config: EdgeConfig, channel: DeviceChannel, sink: EventSink) -> BrokerLink:
    """The real link, over MQTT.

    Raises:
        ConfigError: The password file cannot be read.
    """
    from broker_link.paho_link import PahoLink

    return PahoLink(
        url=broker_url_with_login(config.broker),
        client_id=f"{channel.population}-{channel.device_id}",
        subscriptions=channel.subscriptions,
        sink=sink,
        will=channel.will,
        ca_file=config.broker.ca_file or None,
        certificate=client_certificate(config.broker),
    )
