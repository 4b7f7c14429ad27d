"""Fine-tuning: what a model gains on new data and forgets of the old, and what each method costs.

python -m benchmarks.finetuning [--data ../shared/data] [--out FOLDER] [--seeds 5] [--small]

- `starts` makes the models that are tuned, `methods` tunes one of them, `report` compares the methods.
- `costs` measures an epoch with a frozen tower that is encoded once, and LoRA beside peft.
"""
