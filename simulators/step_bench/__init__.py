"""One training step of ``mnist_cnn``: the exported file against TensorFlow, PyTorch and a Flex file, interleaved."""
