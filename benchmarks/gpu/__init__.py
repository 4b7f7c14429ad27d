"""The comparison on one GPU: training steps, a whole run, encoding and losses, beside their best peers.

python -m benchmarks gpu [PART ...] [--small] [--device cpu] [--seconds 340] [--rounds 5] [--out FOLDER]

Each part runs in a process of its own, with a share of the seconds. Results are compared before they are timed, in
interleaved rounds; a value is the median of the rounds. Each row is written when it is measured, to `rows.jsonl`,
`gpu.md` and `gpu.json` in FOLDER, so that a process that is stopped loses only what it did not begin. A peer that is
not installed gives a row with the reason. Nothing uses the network.
"""
