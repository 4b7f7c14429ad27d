"""What a run needs from the machine: ranks, FSDP, memory, compilation, precision, FLOPs."""
