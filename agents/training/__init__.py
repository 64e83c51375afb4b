"""A training run from settings to result: what `train.py` and `evaluate.py` are made of."""
