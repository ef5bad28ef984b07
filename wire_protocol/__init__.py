"""What a device and a coordinator must agree on. No I/O, no clock, no randomness; numpy, msgspec, safetensors."""
