"""One reader for each dataset layout."""
