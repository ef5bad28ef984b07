"""All groups of checks, in the order in which `doctor` makes them: what others need comes first."""

from typing import Final

from edge_client.checks.broker import BROKER_CHECKS
from edge_client.checks.data import CONFIG_CHECKS, DATA_CHECKS
from edge_client.checks.machine import MACHINE_CHECKS
from edge_client.checks.model import MODEL_CHECKS
from edge_client.checks.network import NETWORK_CHECKS
from edge_client.checks.privacy import PRIVACY_CHECKS
from edge_client.checks.releases import RELEASE_CHECKS
from edge_client.checks.resources import RESOURCE_CHECKS
from edge_client.checks.service import SERVICE_CHECKS
from edge_client.checks.state import STATE_CHECKS
from edge_client.doctor import CheckGroup
from edge_client.eligibility.report import ELIGIBILITY_CHECKS

__all__ = ["GROUPS"]

GROUPS: Final = (
    CheckGroup(name="machine", checks=(*MACHINE_CHECKS, *RESOURCE_CHECKS), needs_config=False),
    CheckGroup(name="configuration", checks=(*CONFIG_CHECKS, *ELIGIBILITY_CHECKS)),
    CheckGroup(name="state", checks=(*STATE_CHECKS, *RELEASE_CHECKS)),
    CheckGroup(name="data", checks=DATA_CHECKS),
    CheckGroup(name="model", checks=MODEL_CHECKS),
    CheckGroup(name="broker", checks=(*NETWORK_CHECKS, *BROKER_CHECKS)),
    CheckGroup(name="privacy", checks=PRIVACY_CHECKS),
    CheckGroup(name="service", checks=SERVICE_CHECKS, needs_config=False),
)
"""Every group. The names are those of ``doctor --group``."""
