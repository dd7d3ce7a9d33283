"""The check: what judges an erasure. It imports neither the engine nor the hub side."""

from .measures import Answer, Figures, answer_questions, figures, recall_scorer

__all__ = ["Answer", "Figures", "answer_questions", "figures", "recall_scorer"]
