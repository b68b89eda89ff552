"""Learned optimizers: small networks that say how each parameter moves, as optax transformations."""
