"""Sums that the coordinator learns without their parts: keys, sealing, and what opens a total. No I/O, no clock (ADR 0007)."""
