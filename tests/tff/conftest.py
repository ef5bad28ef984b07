"""TFF's tests run in this process alone: no worker process may be started, by code or by test."""

import importlib.util
import os
from pathlib import Path

import psutil
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def tiny_fleet():
    """The module `tiny_fleet` beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location("tiny_fleet", Path(__file__).with_name("tiny_fleet.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_process_context():
    """TFF's default context for a test; afterwards no child of this process may be TFF's worker."""
    import tensorflow_federated as tff

    from coordinator.tff.contexts import InProcessContext

    context = InProcessContext()
    tff.framework.set_default_context(context)
    yield context
    assert not [child.name() for child in psutil.Process().children(recursive=True) if "worker" in child.name()]
