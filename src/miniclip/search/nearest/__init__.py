"""Nearest vectors: exact, and by engines for more than a million."""
