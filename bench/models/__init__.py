"""Model families: one adapter a file, each ending in a mapping `MODELS` of names to loaders."""
