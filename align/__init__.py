"""Align: preference alignment whose main input is negative examples."""

__version__ = "0.1.0"
