"""What a run shows: the time line, the status board, dialogues, W&B."""
