"""What can be done for a policy that has lost more than it should: a way back to its base, and repair of its heads."""
