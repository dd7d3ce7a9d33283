"""Models that compare an answer with its reference: their similarity, and whether one follows from the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError

Judge = Callable[[Sequence[str], Sequence[str]], list[float]]


def similarity_judge(name: str | Path) -> Judge:
    """Cosine similarity of sentence embeddings, 0 at the least.

    Args:
        name: A sentence-transformers model: a folder or a Hub id.

    Raises:
        ImportError: The library is missing.
        ValueError: There is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingPackageError(
            'similarity needs sentence-transformers: pip install "peft-unierase[similarity]"'
        ) from error
    model = _loaded(
        lambda: SentenceTransformer(str(name), trust_remote_code=False), name, "sentence-transformers model"
    )

    def judge(references: Sequence[str], answers: Sequence[str]) -> list[float]:
        one, other = (
            model.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
            for texts in (references, answers)
        )
        return (one * other).sum(dim=-1).clamp(min=0).tolist()

    return judge


def entailment_judge(name: str | Path) -> Judge:
    """Whether a natural language inference model finds that the reference follows from the answer, 0 or 1.

    Args:
        name: A transformers sequence classifier that has a label with `entail` in it: a folder or a Hub id.

    Raises:
        ValueError: There is no such model, or it has no such label.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    told = {"trust_remote_code": False}
    model = _loaded(lambda: AutoModelForSequenceClassification.from_pretrained(str(name), **told), name, "NLI model")
    tokenizer = _loaded(lambda: AutoTokenizer.from_pretrained(str(name), **told), name, "NLI model")
    model.eval()
    labels = {index: label for index, label in model.config.id2label.items() if label.lower().startswith("entail")}
    if len(labels) != 1:
        raise InputError(
            f"{name} has the labels {', '.join(model.config.id2label.values())}, none of which is entailment; give a "
            "natural language inference model"
        )
    (wanted,) = labels
    return lambda references, answers: _entailed(model, tokenizer, wanted, references, answers)


def _entailed(
    model: Any, tokenizer: Any, wanted: int, references: Sequence[str], answers: Sequence[str], batch: int = 32
) -> list[float]:
    import torch

    found: list[float] = []
    for start in range(0, len(answers), batch):
        pairs = list(answers[start : start + batch]), list(references[start : start + batch])
        with torch.no_grad():
            logits = model(**tokenizer(*pairs, padding=True, truncation=True, return_tensors="pt")).logits
        found += (logits.argmax(dim=-1) == wanted).float().tolist()
    return found


def _loaded(load: Callable[[], Any], name: str | Path, kind: str) -> Any:
    try:
        return load()
    except Exception as error:  # whatever the library that meets a wrong name first raises
        raise InputError(f"cannot load the {kind} {str(name)!r}: {str(error).splitlines()[0]}") from error
