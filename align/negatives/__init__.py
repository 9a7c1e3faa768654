"""Where negatives, and the samples that hold against them, come from."""
