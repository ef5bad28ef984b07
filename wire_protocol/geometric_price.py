"""Rényi differential privacy of two-sided geometric noise, exactly. One formula for devices and coordinator.

On a grid this noise costs a little more than continuous Laplace noise of the same scale: a ten-thousandth at 64 units
per sensitivity, a millionth at 256. The Laplace formula would claim that much too little.
"""

import math

__all__ = ["geometric_rdp"]


def geometric_rdp(alpha: float, *, noise_multiplier: float, sensitivity_units: int) -> float:
    """RDP of integer noise ``P(k)`` proportional to ``a^|k|`` on a vector that one device moves by s units in L1 norm.

    With ``h = -log a = 1 / (noise_multiplier s)`` and ``r = a^(2 alpha - 1)``, summing the geometric series of
    ``P(k)^alpha P(k - s)^(1 - alpha)`` below 0, between 0 and s, and above s:

    ``M(s) = tanh(h/2) [ (1/(1-a) + r/(1-r)) e^((alpha-1) h s) + (1/(1-a) - 1/(1-r)) e^(-alpha h s) ]``,

    and RDP is ``log M(s) / (alpha - 1)``. Both factors are positive, so ``log M`` is convex in s, and 0 at 0: a device
    that spreads its s units over several numbers costs no more than one that puts them all into one.

    Args:
        alpha: The order, above 1.
        noise_multiplier: Scale of the noise in sensitivities.
        sensitivity_units: s.
    """
    step = 1.0 / (noise_multiplier * sensitivity_units)
    whole = -1.0 / math.expm1(-step)
    # May be 1 but for rounding where alpha is huge: r is then 0.
    inner = -1.0 / math.expm1(-(2.0 * alpha - 1.0) * step)
    log_norm = math.log(math.tanh(step / 2.0))
    grown = log_norm + math.log(whole + inner - 1.0) + (alpha - 1.0) / noise_multiplier
    shrunk = log_norm + math.log(whole - inner) - alpha / noise_multiplier
    larger, smaller = max(grown, shrunk), min(grown, shrunk)
    moment = larger + math.log1p(math.exp(smaller - larger))
    # No mechanism of pure epsilon costs more than that epsilon at any order.
    return min(1.0 / noise_multiplier, moment / (alpha - 1.0))
