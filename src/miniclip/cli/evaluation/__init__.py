"""The work of `miniclip eval`."""
