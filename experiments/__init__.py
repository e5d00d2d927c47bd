"""The published comparison in miniature; see docs/evidence.md.

    python -m experiments.run EXPERIMENT [--hours H]
    python -m experiments.redraw

The first trains what is missing in `experiments/results` and can be stopped and started
again at any time; the second redraws the tables and figures of docs/evidence.md.
"""
