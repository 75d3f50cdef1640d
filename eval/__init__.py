"""Judges: what a set of scores or samples says, whichever algorithm made it."""
