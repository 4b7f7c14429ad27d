"""The decoded cache: images at the model's size on disk."""
