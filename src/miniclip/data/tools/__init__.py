"""Inspect, download and preview datasets."""
