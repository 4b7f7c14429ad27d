"""Sources of a batch's pixels: memory, worker processes or a cache, all with the same pixels."""
