"""Scaling laws: small runs that tell how large a model to train, on how much, how well it does."""
