"""The decoded cache: images at the model's size on disk, read through a memory map."""
