"""Measurements that anyone can repeat: each file is a command, `python -m benchmarks.NAME`."""
