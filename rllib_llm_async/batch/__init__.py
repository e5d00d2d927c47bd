"""Columns of a batch by name, and rows packed from sequences."""
