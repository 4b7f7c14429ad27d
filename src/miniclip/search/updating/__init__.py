"""Building and updating an index: sources of images, their reading, and what changed."""
