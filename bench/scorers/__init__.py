"""Scorers: looked up by name, their files, what they share, tiny ones, and `bench score`."""
