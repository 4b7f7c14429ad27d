"""Diagnostics: the check before a run, the doctor during a run, and the dry-run plan."""
