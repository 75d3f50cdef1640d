"""Rewards: one module a family, each ending in a mapping `REWARDS` from name to class."""
