"""The algorithms: one paper, one file, each ending in a mapping `ARMS` of named, frozen values."""
