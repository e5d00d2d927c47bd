"""Who may start what and when, and what became of it: plain parts and their actor."""
