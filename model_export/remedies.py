"""What to use instead of a Keras layer that cannot be exported."""

from collections.abc import Mapping
from typing import Final

__all__ = ["remedy_for"]

_AT_HOME: Final = "It prepares data: apply it before the examples are stored on the device."
_NO_VOLUMES: Final = "There are no three-dimensional layers; use the two-dimensional one on each slice, or reshape."
_NOT_A_LAYER: Final = "It is a building block, not a layer of a model; use the layers that are exported."
_ATTENTION: Final = "Use MultiHeadAttention."
_RECURRENT: Final = "Use GRU, LSTM or SimpleRNN."
_NOISE: Final = "Use Dropout: its masks are the same on every machine."

_REMEDIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "CategoryEncoding", "CenterCrop", "DenseFeatures", "Discretization", "HashedCrossing", "Hashing",
            "IntegerLookup", "RandomBrightness", "RandomContrast", "RandomCrop", "RandomFlip", "RandomHeight",
            "RandomRotation", "RandomTranslation", "RandomWidth", "RandomZoom", "Resizing", "StringLookup",
            "TextVectorization",
        ),
        _AT_HOME,
    ),
    **dict.fromkeys(
        (
            "AveragePooling3D", "Conv3D", "Conv3DTranspose", "ConvLSTM3D", "Cropping3D", "GlobalAveragePooling3D",
            "GlobalMaxPooling3D", "MaxPooling3D", "SpatialDropout3D", "UpSampling3D", "ZeroPadding3D",
        ),
        _NO_VOLUMES,
    ),
    **dict.fromkeys(
        ("AbstractRNNCell", "GRUCell", "InputSpec", "LSTMCell", "Layer", "SimpleRNNCell", "StackedRNNCells", "Wrapper"),
        _NOT_A_LAYER,
    ),
    **dict.fromkeys(("AdditiveAttention", "Attention"), _ATTENTION),
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "RNN"), _RECURRENT),
    **dict.fromkeys(("AlphaDropout", "GaussianDropout", "GaussianNoise"), _NOISE),
    "ActivityRegularization": "Remove it: regularizers are not part of the training step.",
    "Dot": "Use Multiply and a Dense layer.",
    "EinsumDense": "Use Dense, with Permute or Reshape before it.",
    "Lambda": "Use the layer that does the same: code cannot be exported.",
    "LocallyConnected1D": "Use Conv1D.",
    "LocallyConnected2D": "Use Conv2D.",
    "Masking": "Remove it: masks are not carried. Make sequences of one length instead.",
    "PReLU": "Use LeakyReLU.",
    "SpectralNormalization": "Apply the wrapped layer by itself.",
    "SlicingOpLambda": "Use Cropping1D or Cropping2D instead of indexing.",
    "ThresholdedReLU": "Use ReLU.",
    "TimeDistributed": "Apply the layer itself: Dense works on the last axis; reshape for others.",
    "UnitNormalization": "Use LayerNormalization.",
}  # fmt: skip


def remedy_for(class_name: str) -> str | None:
    """The remedy for a Keras class, or ``None`` for a class that Keras does not have."""
    return _REMEDIES.get(class_name)
