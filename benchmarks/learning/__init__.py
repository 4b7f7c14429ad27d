"""Recall after equal training time: miniclip and open_clip, trained from scratch on the same images.

python -m benchmarks learning

- `sets` holds the data, `clock` counts the time.
- `miniclip_system` and `open_clip_system` make the steps, `run` trains one model for a budget.
- `records` keeps the results, `report` compares them, `trials` changes one setting at a time.
"""
