"""Real brokers for tests: the embedded one always, Mosquitto where it is installed (and always in CI)."""

import os

import pytest

from coordinator.broker_choice import broker_at, find_mosquitto


@pytest.fixture(scope="session", params=["embedded", "mosquitto"])
def broker_url(request):
    """Address of a running broker."""
    if request.param == "mosquitto" and find_mosquitto() is None:
        if os.environ.get("CI"):
            pytest.fail("Mosquitto must be installed in CI: .ci/run installs it")
        pytest.skip("Mosquitto is not installed; 'apt install mosquitto' brings it")
    with broker_at(request.param) as url:
        yield url


@pytest.fixture(scope="session")
def embedded_url():
    """Address of the embedded broker alone, for tests in which the broker is not the point."""
    with broker_at("embedded") as url:
        yield url
