"""The embedded model: a tiny FLUX-format text-to-image model of a small captioned world, made from scratch."""
