"""Decoded images on disk, read through a memory map."""
