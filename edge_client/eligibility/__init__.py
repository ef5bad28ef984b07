"""Whether this device may train now: probes of the machine, the owner's policy, and the verdict."""
