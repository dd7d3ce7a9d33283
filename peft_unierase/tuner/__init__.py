"""The tuner: what a consumer of an erasure loads. It knows nothing of how erasures are made, judged or shared."""

from .config import UniEraseConfig
from .gate import GateLayer
from .model import UniEraseModel
from .register import register
from .token_row import InputRowLayer, OutputRowLayer

__all__ = ["GateLayer", "InputRowLayer", "OutputRowLayer", "UniEraseConfig", "UniEraseModel", "register"]
