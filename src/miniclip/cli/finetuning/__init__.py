"""miniclip finetune, interpolate, and the comparison of a fine-tuned model with the original."""
