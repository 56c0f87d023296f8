"""The trainer. `python -m train CONFIG` runs it; `train.loop.fit` is its story."""
