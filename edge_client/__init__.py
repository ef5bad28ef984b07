"""The device: a daemon that trains on local examples and reports over MQTT. Never imports TensorFlow."""
