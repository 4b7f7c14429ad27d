"""Small helpers that every room uses: atomic files, locks, checks of types, seeded randomness, threads."""
