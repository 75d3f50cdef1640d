"""Arbor's harness: one rollout, reward and update path that every algorithm shares."""
