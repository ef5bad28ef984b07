"""The part of a member of the population that opens sums: rules kept on disk, and the talk with the coordinator."""
