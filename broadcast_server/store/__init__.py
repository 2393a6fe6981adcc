"""The truth: tables and queries by noun; the only package that speaks SQL."""
