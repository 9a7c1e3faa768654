"""Rows: one record for every format, where they come from, tokens, steps, micro-batches."""
