"""Released models on the device: verified, fetched, tried, switched to, and taken back."""
