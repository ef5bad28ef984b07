"""The broker link: one seam, a real MQTT client and an in-memory broker on virtual time (ADR 0002)."""
