"""Layers as TFLite builtin ops that XNNPACK runs with variable weights, each with its gradient by formula.

Every lowering returns ``(output, pullback)``: ``pullback`` maps the gradient of the loss with respect to the output
to the gradients with respect to the inputs (the vector-Jacobian product). No automatic differentiation is used: its
``...Grad`` ops are not TFLite builtins.
"""
