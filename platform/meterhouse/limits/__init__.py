"""Limits: their grammar, what a request demands, and the meter that holds and settles it in one process."""
