"""Hardware of a run: ranks, FSDP, memory, compilation, precision, FLOPs."""
