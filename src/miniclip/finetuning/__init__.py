"""Fine-tuning of a model: what is trained, and what it stays near to."""
