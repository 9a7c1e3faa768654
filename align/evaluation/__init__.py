"""Measurements on held-out rows."""
