"""What a report says beside its update when the task is private: always the same, so that it says nothing.

Numbers of examples and sums of losses are facts about local data; published as they are they would be a second
release that nobody has paid for. Weight 1 for everyone is also what the sensitivity of the sum rests on.
"""

from typing import Final

from wire_protocol.messages import Metrics

__all__ = ["PRIVATE_METRICS", "PRIVATE_NUM_EXAMPLES", "PRIVATE_WEIGHT"]

PRIVATE_NUM_EXAMPLES: Final = 1
PRIVATE_WEIGHT: Final = 1.0
PRIVATE_METRICS: Final = Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0)
