"""A scorer behind HTTP: the protocol, its two sides, and `bench serve`."""
