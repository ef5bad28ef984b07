"""broker_link."""
