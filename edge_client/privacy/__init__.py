"""What makes an update private before it leaves the device: clip, grid, noise, price, ledger."""
