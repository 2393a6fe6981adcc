"""Vertical, deletable features; empty until the first one, its layer is reserved."""
