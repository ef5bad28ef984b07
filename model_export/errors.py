"""Errors of the model exporter.

ExportError
├── UnsupportedModel         the model as a whole cannot be exported (several inputs, nothing to train, no input shape)
│   └── UnsupportedLayer     one layer, or one option of it; names the layer and what to use instead
├── UnsupportedOp            the converted file holds a Flex or custom op: a bug of a lowering, never the user's
├── ParityRefused            the converted file computes something else than Keras; carries the report
├── NotABundle               the output directory holds other files, which a new bundle would replace
├── UnreadableModel          the file named on the command line is not a Keras model
├── UnreadableGraph          a bundle's graph is missing, damaged, or of a later version
├── UnusableExamples         too few examples to quantise with, or not the task's
└── FreezingRefused          an inference file does not compute what the model file computes, or int8 was asked in vain
"""

__all__ = [
    "ExportError",
    "FreezingRefused",
    "NotABundle",
    "ParityRefused",
    "UnreadableGraph",
    "UnreadableModel",
    "UnsupportedLayer",
    "UnsupportedModel",
    "UnsupportedOp",
    "UnusableExamples",
]


class ExportError(Exception):
    """Base of the errors of this package."""


class UnsupportedModel(ExportError):
    """The model as a whole cannot be exported."""


class UnsupportedLayer(UnsupportedModel):
    """A layer, or an option of it, has no lowering.

    Args:
        layer_name: The layer's name in the model.
        layer_type: Its Keras class.
        problem: What is not supported, as the end of a sentence.
        instead: What to use, as a sentence.
    """

    def __init__(self, *, layer_name: str, layer_type: str, problem: str, instead: str) -> None:
        super().__init__(f"layer {layer_name!r} ({layer_type}): {problem}. {instead}")
        self.layer_name = layer_name
        self.layer_type = layer_type
        self.instead = instead


class UnsupportedOp(ExportError):
    """The converted file holds an op that is not a TFLite builtin."""


class NotABundle(ExportError):
    """The output directory holds files that are no bundle's."""


class UnreadableModel(ExportError):
    """The file is not a Keras model."""


class UnreadableGraph(ExportError):
    """A bundle's graph cannot be read."""


class UnusableExamples(ExportError):
    """Examples that int8 cannot be made or measured with."""


class FreezingRefused(ExportError):
    """An inference file would be wrong, or cannot be made."""


class ParityRefused(ExportError):
    """The converted file's losses, gradients or weights leave Keras's own by more than the tolerance.

    Args:
        violations: One sentence per quantity that failed, with the error and the tolerance.
    """

    def __init__(self, violations: tuple[str, ...]) -> None:
        super().__init__("the exported file does not compute what Keras computes: " + "; ".join(violations))
        self.violations = violations
