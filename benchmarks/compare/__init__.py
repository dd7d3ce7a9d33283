"""Every method that takes knowledge out of a model, side by side: the same models, facts, budget, measures and attacks.

`run.py` is the command. Modules are imported as `compare.tasks`, with `benchmarks/` on the path, as the scripts in there
import each other (`from common import bare`).
"""
