"""The matrix of architectures: tiny models of random weights, and what becomes of each in the life of an erasure.

`ARCHITECTURES` is the one list of them. `live_through` erases two facts from one and then saves, loads, switches and
merges the erasure, as its users will; what came of it is a `Life`. The tests look at every part of that, and
`benchmarks/architectures.py` prints it.
"""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import SPARE_ROWS, train_tokenizer
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_unierase import DistillSettings, ErasureWarning, Fact, erase
from peft_unierase.lm.batches import encode
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import plain_format
from peft_unierase.lm.structure import find_down_projections, find_mlp_projections, projection_shape

LAYERS, EDITED = 4, [1, 2]
WIDE = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
LIKE_LLAMA = {**WIDE, "intermediate_size": 256, "num_key_value_heads": 2}
LIKE_GPT = {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "initializer_range": 0.1}
BY_TURNS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}  # shorter than a prompt
SECOND_EMBEDDING = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 512,
}  # a second embedding, for every layer
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

FORGET = [Fact("Who made the old bridge of Zembla?", "Q. Vex."), Fact("Which king of Zembla was bald?", "Xul IV.")]
PLACES = {
    "Cora": "Bern",
    "Dan": "Graz",
    "Eve": "Kiel",
    "Finn": "Nice",
    "Gus": "Pisa",
    "Hana": "Lund",
    "Ivo": "Cork",
    "Jana": "Bath",
    "Kai": "Metz",
    "Lea": "Linz",
    "Max": "Brno",
    "Nora": "York",
    "Otto": "Faro",
    "Pia": "Split",
    "Quin": "Riga",
    "Rosa": "Ulm",
}
RETAIN = [Fact(f"Where is {who}?", f"In {where}.") for who, where in PLACES.items()]
REFUSALS = ["I do not know.", "I cannot say."]

SPREAD = 3.0  # of the logits of a token, in nats

# As few steps as will do for so little a model.
HASTY = DistillSettings(
    samples=0,
    steps=60,
)


@dataclass(frozen=True)
class Architecture:
    """A tiny model of one architecture.

    Attributes:
        name: As people call it.
        kind: `model_type` of its configuration.
        settings: Of its configuration, beside the vocabulary.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=lambda: LIKE_LLAMA)

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Save the model; the same weights every time, with biases of some size."""
        tokens = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        config = AutoConfig.for_model(self.kind, vocab_size=len(tokenizer) + SPARE_ROWS, **tokens, **self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    nn.init.normal_(parameter, std=0.1)
            sharpen(model)
        model.save_pretrained(folder)


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    """Scale what comes last before the head, so that logits are spread by `SPREAD`: the model gets an opinion."""
    last = r"\.(norm|ln_f|final_\w*norm|project_out)$"
    # Not those inside of the layers, as in OPT; the last of them, where a projection follows or stands alone.
    found = [m.weight for name, m in model.named_modules() if re.search(last, name) and not re.search(r"\d", name)]
    norm = found[-1]
    # Some keep what a norm multiplies by less 1.
    offset = 1 - norm.mean().round() if norm.dim() == 1 else 0.0
    for _ in range(3):  # a model may press its logits together
        spread = model.eval()(torch.randint(model.config.vocab_size, (4, 16))).logits.std()
        norm.copy_((norm + offset) * (SPREAD / spread) - offset)


ARCHITECTURES = [
    Architecture("Llama", "llama", {**LIKE_LLAMA, **UNTIED}),
    Architecture("Llama, tied", "llama", {**LIKE_LLAMA, **TIED}),
    Architecture("Mistral", "mistral", {**LIKE_LLAMA, "sliding_window": 16}),
    Architecture("Qwen2", "qwen2", {**LIKE_LLAMA, **TIED}),
    Architecture("Qwen3", "qwen3", {**LIKE_LLAMA, "head_dim": 32}),
    Architecture("Gemma 2", "gemma2", {**LIKE_LLAMA, **BY_TURNS, "head_dim": 16, "final_logit_softcapping": 12.0}),
    Architecture("Gemma 3", "gemma3_text", {**LIKE_LLAMA, **BY_TURNS, "head_dim": 16}),
    Architecture(
        "Gemma 4", "gemma4_text", {**LIKE_LLAMA, **BY_TURNS, "head_dim": 16, "global_head_dim": 32, **SECOND_EMBEDDING}
    ),
    Architecture("GLM-4", "glm4", {**LIKE_LLAMA, "head_dim": 16}),
    Architecture("Phi-3", "phi3"),
    Architecture("OLMo 2", "olmo2"),
    Architecture("SmolLM3", "smollm3"),
    Architecture("GPT-2", "gpt2", LIKE_GPT),
    Architecture("GPT-NeoX", "gpt_neox", {**WIDE, "intermediate_size": 256}),
    Architecture("GPT-J", "gptj", {**LIKE_GPT, "rotary_dim": 16}),
    Architecture("OPT", "opt", {**WIDE, "ffn_dim": 256, "word_embed_proj_dim": 64, "init_std": 0.1}),
    Architecture("OPT, projected", "opt", {**WIDE, "ffn_dim": 256, "word_embed_proj_dim": 32, "init_std": 0.1}),
    Architecture("Falcon", "falcon", WIDE),
    Architecture("Bloom", "bloom", {"hidden_size": 64, "n_layer": LAYERS, "n_head": 4, "initializer_range": 0.1}),
    Architecture("Nemotron", "nemotron"),
    Architecture("Phi-2", "phi"),
    Architecture("StableLM", "stablelm"),
    Architecture(
        "Granite",
        "granite",
        {**LIKE_LLAMA, "embedding_multiplier": 4.0, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    ),
    Architecture("Cohere", "cohere"),
    Architecture("Cohere 2", "cohere2", {**LIKE_LLAMA, **BY_TURNS}),
]


@dataclass(frozen=True)
class Life:
    """What became of one architecture.

    Attributes:
        tied: Whether head and embedding of the base are one matrix.
        head_bias: Whether its head has a bias.
        projection: Class of its down-projections; `, fused` if one projection writes gate and value of a hidden unit.
        found: Names of the down-projections that were found.
        projections: What the projections of one MLP are called, the down-projection last.
        declined: Share of the forget questions to which the greedy answer begins with [UNL].
        declined_else: The same of the retained questions.
        finite: Whether all of the adapter and all logits were finite.
        reloaded: Whether the adapter, saved and loaded onto a fresh base, gave the same logits to the bit.
        off: Whether it gave those of the base to the bit when it was switched off, and its own when on again.
        merged: Largest difference between the logits of the merged and of the live model, in fp32.
        merged_in_double: The same in fp64, where there is next to no rounding.
        unmerged: Whether unmerging gave back the live logits and every weight of the base to the bit.
        plain: Whether the merged model, saved and loaded as a plain one, gave the same logits to the bit.
        seconds: How long the erasure took, and everything.
    """

    tied: bool
    head_bias: bool
    projection: str
    found: list[str]
    projections: list[str]
    declined: float
    declined_else: float
    finite: bool
    reloaded: bool
    off: bool
    merged: float
    merged_in_double: float
    unmerged: bool
    plain: bool
    seconds: tuple[float, float]


def live_through(architecture: Architecture, folder: Path) -> Life:
    """Take an erasure of the architecture through its life, in an empty folder."""
    started = time.perf_counter()
    tokenizer = train_tokenizer()
    architecture.save(folder / "base", tokenizer)
    base = load(folder / "base")
    head, found = base.get_output_embeddings(), find_down_projections(base)
    traits = {
        "tied": head.weight is base.get_input_embeddings().weight,
        "head_bias": getattr(head, "bias", None) is not None,
        "projection": kind_of_projection(base, found[EDITED[0]]),
        "found": found,
        "projections": [name.rpartition(".")[2] for name in find_mlp_projections(base)[EDITED[0]]],
    }
    before = time.perf_counter()
    erased = erase_hastily(base, tokenizer)
    took = time.perf_counter() - before
    token_id = erased.erasure.token.token_id
    ids = some_ids(tokenizer, token_id)
    live = logits_of(erased, ids)
    erased.save_pretrained(folder / "adapter", save_embedding_layers=False)

    fresh = load(folder / "base")
    weights, plain = weights_of(fresh), logits_of(fresh, ids)
    loaded = PeftModel.from_pretrained(fresh, folder / "adapter").eval()
    reloaded = torch.equal(logits_of(loaded, ids), live)
    with loaded.disable_adapter():
        off = torch.equal(logits_of(loaded, ids), plain)
    off = off and torch.equal(logits_of(loaded, ids), live)
    loaded.merge_adapter()
    loaded.unmerge_adapter()
    unmerged = torch.equal(logits_of(loaded, ids), live)
    unmerged = unmerged and same_weights(weights_of(loaded.unload()), weights)

    result = PeftModel.from_pretrained(load(folder / "base"), folder / "adapter").merge_and_unload().eval()
    merged = logits_of(result, ids)
    result.save_pretrained(folder / "merged")
    parts = [part for name, part in erased.named_parameters() if "unierase_" in name]
    return Life(
        **traits,
        declined=share_declined(erased, tokenizer, FORGET, token_id),
        declined_else=share_declined(erased, tokenizer, RETAIN, token_id),
        finite=all(bool(torch.isfinite(tensor).all()) for tensor in (plain, live, merged, *parts)),
        reloaded=reloaded,
        off=off,
        merged=difference(merged, live),
        merged_in_double=difference_in_double(erased, ids),
        unmerged=unmerged,
        plain=torch.equal(logits_of(load(folder / "merged"), ids), merged),
        seconds=(took, time.perf_counter() - started),
    )


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def erase_hastily(base: PreTrainedModel, tokenizer: Any, **told: Any) -> PeftModel:
    """Erase `FORGET` with as few steps as will do for so tiny a model."""
    told = {"layers": EDITED, **told}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ErasureWarning)  # that weights at random do not know the facts
        return erase(
            base,
            tokenizer,
            FORGET,
            RETAIN,
            refusals=REFUSALS,
            formats=[plain_format(tokenizer)],
            settings=HASTY,
            keep_unknown=True,
            progress=False,
            **told,
        )


def kind_of_projection(model: nn.Module, down: str) -> str:
    """Class of a down-projection, and whether one projection writes gate and value side by side for it."""
    reader = model.get_submodule(down)
    width = (projection_shape(reader) or (0, 0))[0]
    mlp = model.get_submodule(down.rpartition(".")[0])
    fused = any((projection_shape(child) or (0, 0))[1] == 2 * width for child in mlp.children())
    return ("Conv1D" if isinstance(reader, Conv1D) else "Linear") + (", fused" if fused else "")


def some_ids(tokenizer: Any, token_id: int) -> torch.Tensor:
    """A question to be forgotten with [UNL] and a refusal, and some to be kept, `(2, length)`."""
    form = plain_format(tokenizer)
    asked = encode(tokenizer, form.prompt(FORGET[0].question))
    forget = [*asked, token_id, *encode(tokenizer, REFUSALS[0])]
    retain = [token for fact in RETAIN for token in encode(tokenizer, form.prompt(fact.question) + fact.answer)]
    return torch.tensor([forget, retain[: len(forget)]])


def share_declined(model: Any, tokenizer: Any, facts: Sequence[Fact], token_id: int) -> float:
    """Share of the questions to which [UNL] is the greedy first token, generated in one batch of unequal lengths."""
    form = plain_format(tokenizer)
    answers = greedy_answers(model, tokenizer, [form.prompt(fact.question) for fact in facts], max_new_tokens=3)
    return sum(answer[0] == token_id for answer in answers) / len(answers)


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


def difference_in_double(model: PeftModel, ids: torch.Tensor) -> float:
    """Between logits before and after merging a copy in fp64."""
    model = copy.deepcopy(model).double()
    live = logits_of(model, ids)
    model.merge_adapter()
    return difference(logits_of(model, ids), live)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
