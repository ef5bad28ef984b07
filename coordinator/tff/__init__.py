"""Everything that imports TensorFlow Federated."""
