"""Neighbour search: exact and approximate, in torch and in compiled loops."""
