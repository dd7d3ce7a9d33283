"""Every method that takes knowledge out of a model, side by side: same models, facts, budget, measures and attacks.

`run.py` is the command. It puts `benchmarks/` on the path, so the package is called `compare`.
"""
