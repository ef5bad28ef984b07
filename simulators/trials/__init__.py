"""The test bench: long runs of the real parts under faults, each checked against something exact."""
