"""Signing behind a port: no other part of the server ever holds a private key."""
