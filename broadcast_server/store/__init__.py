"""The truth: tables and queries by noun; the only package that speaks SQL."""

from broadcast_server.store import append_only, tables_approval, tables_devices, tables_identity, tables_rights

__all__ = [  # they join the metadata of `store.tables`, whoever asks for that
    "append_only",
    "tables_approval",
    "tables_devices",
    "tables_identity",
    "tables_rights",
]
