"""The truth: tables and queries by noun; the only package that speaks SQL."""

from broadcast_server.store import tables_devices, tables_identity

__all__ = ["tables_devices", "tables_identity"]  # its tables join the metadata of `store.tables`, whoever asks for that
