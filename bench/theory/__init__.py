"""The theory of branching rollouts, checked: closed forms for Gaussian data against the harness's own rollouts."""
