"""Helpers without a subject of their own: atomic writes, locks, type checks, seeded randomness, threads."""
