"""Keras models as trainable ``.tflite`` files of builtin ops: export, proof of parity, and the simulation's twin.

Start at ``exporter.export_model``. Importing this package, its ``errors``, ``certificate`` and ``operations`` does not
load TensorFlow.
"""
