"""The two towers and the model that joins them."""
