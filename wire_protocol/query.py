"""A question to a fleet, fixed before anybody looks at data: what each device answers, and with how much noise.

Every device has one value (how many examples it has; the mean of an input column), and contributes one short vector
whose L1 norm is at most 1, so that the sensitivity of the sum follows from the question and is no setting:

| kind | vector | length |
|---|---|---|
| ``count`` | 1 if the value is within the bounds | 1 |
| ``mean`` | half of (value - middle) / (half the range), clamped; and a half, which counts the device | 2 |
| ``histogram`` | 1 in the value's bin | bins |
| ``quantiles`` | 1/L at each of the L nodes of a dyadic tree that hold the value's bin | 2 B - 2 |

A device without such a value contributes zeros. Noise is two-sided geometric, Laplace's on integers: in mode
``distributed`` the sum has it, in shares; in mode ``local`` each device's vector has all of it, and hides the device from
everybody. The answer is epsilon-differentially private with delta 0.
"""

import bisect
import itertools
import math
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from wire_protocol.dyadic_tree import num_nodes, path_to
from wire_protocol.identifiers import IDENTIFIER_PATTERN, checked_identifier
from wire_protocol.privacy_spec import PrivacySpec, rounded_l1_bound

__all__ = ["MAX_CELLS", "Quantity", "Query", "QueryKind", "QueryMode", "contribution"]

QueryKind: TypeAlias = Literal["count", "mean", "histogram", "quantiles"]
QueryMode: TypeAlias = Literal["distributed", "local"]
Quantity: TypeAlias = Literal["num_examples", "input_mean", "label_mean", "class_share"]
"""The one value of a device: how many examples it has; over them the mean of column ``column`` of the inputs (as a flat
vector) or of the labels; the share of the examples whose class is ``column``."""

MAX_CELLS: Final = 1024
"""Most bins of a question."""
_BOUNDS: Final = 2
_FINEST_GRID_BITS: Final = 8
_COARSEST_GRID_BITS: Final = 6
_MAX_SCALE_UNITS: Final = 3000.0
"""Keeps a device's table of noise below a quarter of a million entries, unless epsilon is very small."""
_MIN_EPSILON: Final = 0.01
_MAX_EPSILON: Final = 10.0
_Name = Annotated[str, msgspec.Meta(pattern=IDENTIFIER_PATTERN)]


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question.

    Raises:
        ValueError: A value is out of its range, or the edges are not what the kind needs; says what would do.
    """

    name: _Name
    """The question's name; with ``period`` it names the one answer that a device gives."""
    period: _Name
    """When it is asked: ``2026-11``. A device answers a name once per period."""
    kind: QueryKind
    of: Quantity = "num_examples"
    column: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    edges: Annotated[tuple[float, ...], msgspec.Meta(min_length=2, max_length=MAX_CELLS + 1)]
    """Rising. Of a histogram the edges of its bins; of any other kind the two bounds of the value."""
    num_bins: Annotated[int, msgspec.Meta(ge=2, le=MAX_CELLS)] = 256
    """Of ``quantiles``: equal bins between the bounds; a power of 2."""
    epsilon: Annotated[float, msgspec.Meta(ge=_MIN_EPSILON, le=_MAX_EPSILON)]
    """What the answer costs each device."""
    min_contributors: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)]
    """n_min: with fewer answers there is none."""
    mode: QueryMode = "distributed"
    """Who has the noise: the sum, or each device's answer."""

    def __post_init__(self) -> None:
        checked_identifier(self.name, kind="query name")
        checked_identifier(self.period, kind="period")
        # Written so that NaN fails; msgspec checks ranges only when it decodes.
        if not _MIN_EPSILON <= self.epsilon <= _MAX_EPSILON:
            raise ValueError(f"epsilon must be {_MIN_EPSILON:g} to {_MAX_EPSILON:g}, not {self.epsilon}")
        if self.min_contributors < 2:  # noqa: PLR2004 - with 1 the answer would be a device's own
            raise ValueError(f"min_contributors must be at least 2, not {self.min_contributors}")
        if not all(map(math.isfinite, self.edges)) or any(low >= high for low, high in itertools.pairwise(self.edges)):
            raise ValueError(f"edges must be finite and rise, not {self.edges}")
        if self.kind != "histogram" and len(self.edges) != _BOUNDS:
            raise ValueError(f"{self.kind} needs two bounds, low and high, not {len(self.edges)} edges")
        if not _BOUNDS <= len(self.edges) <= MAX_CELLS + 1:
            raise ValueError(f"a histogram needs 2 to {MAX_CELLS + 1} edges, not {len(self.edges)}")
        if not 2 <= self.num_bins <= MAX_CELLS or self.num_bins & (self.num_bins - 1):  # noqa: PLR2004
            raise ValueError(f"num_bins must be a power of 2 up to {MAX_CELLS}, not {self.num_bins}")
        self.privacy_spec().check_for(self.num_cells)

    @property
    def num_levels(self) -> int:
        """L: levels of the tree of ``quantiles``."""
        return self.num_bins.bit_length() - 1

    @property
    def num_cells(self) -> int:
        """d: length of a device's vector."""
        match self.kind:
            case "count":
                return 1
            case "mean":
                return 2
            case "histogram":
                return len(self.edges) - 1
            case "quantiles":
                return num_nodes(self.num_levels)

    @property
    def grid_bits(self) -> int:
        """A norm of 1 is ``2^grid_bits`` grid units: the finest that keeps a device's table of noise small."""
        for bits in range(_FINEST_GRID_BITS, _COARSEST_GRID_BITS, -1):
            if rounded_l1_bound(1 << bits, self.num_cells) / self.epsilon <= _MAX_SCALE_UNITS:
                return bits
        return _COARSEST_GRID_BITS

    @property
    def device_units(self) -> int:
        """Grid units for which one device stands where it counts."""
        whole = 1 << self.grid_bits
        match self.kind:
            case "mean":
                return whole // 2
            case "quantiles":
                # Rounded down: a whole number of units needs no rounding at random.
                return whole // self.num_levels
            case _:
                return whole

    def privacy_spec(self) -> PrivacySpec:
        """The mechanism: L1 norm 1, geometric noise of scale ``1 / epsilon`` sensitivities, for one round."""
        return PrivacySpec(
            mode=self.mode,
            clipping="l1",
            clipping_norm=1.0,
            noise="geometric",
            noise_multiplier=1.0 / self.epsilon,
            min_contributors=self.min_contributors,
            num_rounds=1,
            target_epsilon=self.epsilon,
            grid_bits=self.grid_bits,
        )


def contribution(query: Query, value: float | None) -> npt.NDArray[np.float32]:
    """[d] what a device adds to the sum before rounding and noise; its L1 norm is at most 1.

    All but a mean's first number are whole grid units, so that their sum without noise is exact.

    Args:
        query: The question.
        value: The device's; None, NaN or infinity if it has none, which adds nothing.
    """
    vector = np.zeros(query.num_cells, np.float32)
    if value is None or not math.isfinite(value):
        return vector
    low, high = query.edges[0], query.edges[-1]
    share = query.device_units / (1 << query.grid_bits)
    match query.kind:
        case "count":
            vector[0] = share if low <= value <= high else 0.0
        case "mean":
            middle, half = (low + high) / 2.0, (high - low) / 2.0
            vector[:] = share * (min(max(value, low), high) - middle) / half, share
        case "histogram" if low <= value <= high:
            vector[min(bisect.bisect_right(query.edges, value) - 1, query.num_cells - 1)] = share
        case "quantiles":
            fraction = (min(max(value, low), high) - low) / (high - low)
            vector[list(path_to(min(int(fraction * query.num_bins), query.num_bins - 1), query.num_levels))] = share
    return vector
