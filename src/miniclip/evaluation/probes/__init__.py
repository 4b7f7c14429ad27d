"""Linear probes: classifiers trained on image features."""
