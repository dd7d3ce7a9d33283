"""Finds the parts of a causal language model that an erasure touches, by structure and not by name.

What is looked for: the list of decoder layers, and in each the MLP's down-projection, the matrix that writes `d_ff`
back to `d`, and what writes the `d_ff` hidden units that it reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from ..errors import InputError

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
STREAM_COUNTS = ("altup_num_inputs", "hc_mult")
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
ATTENTION = re.compile(r"(^|[._])(attn|attention|self_attn|self_attention)([._]|$)")


class UnsupportedModelError(InputError):
    """The model is of a kind that an erasure cannot be made for; the message says why and what to try."""


def projection_shape(module: nn.Module | None) -> tuple[int, int] | None:
    """`(inputs, outputs)` of a linear map, `None` for anything else. Quantised linears count."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Embedding) or not hasattr(module, "weight"):
        return None
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, also where it is one part of a larger model."""
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no transformers config, so its layers cannot be found; pass `target_modules=`"
        )
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_length(model: nn.Module) -> int | None:
    """How many tokens a model takes; `None` if its configuration does not say."""
    return getattr(text_config(model), "max_position_embeddings", None)


def check_supported(model: nn.Module, target_modules: Sequence[str] | None = None) -> None:
    """Refuse what an erasure cannot be made for.

    Args:
        model: The base.
        target_modules: Names given by the user, who then answers for a mixture of experts.

    Raises:
        UnsupportedModelError: An encoder-decoder, a mixture of experts, a model with recurrent layers or with several
            residual streams, or one without an output head.
    """
    config = text_config(model)
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model; supported are decoder-only causal language models"
        )
    if not target_modules and (experts := _counted_experts(config)):
        raise UnsupportedModelError(
            f"{name} is a mixture of experts ({experts}); supported are models in which every token passes the "
            "same MLP. If some layers have a dense or shared MLP, name their down-projections with "
            "`target_modules=` (on the command line `--target-modules`)"
        )
    if has_recurrent_layers(model):
        raise UnsupportedModelError(
            f"{name} has recurrent layers (state-space, linear attention or convolution), which sum up what they have "
            "read in a state that every further token overwrites; an erasure is fitted by going back to the end of a "
            "prompt again and again, so supported are models with nothing but attention in every layer"
        )
    for key in STREAM_COUNTS:
        count = getattr(config, key, None)
        if isinstance(count, int) and count > 1:
            raise UnsupportedModelError(
                f"{name} has {count} residual streams side by side ({key}={count}); supported are models with a single "
                "one"
            )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UnsupportedModelError(
            f"{name} has no output head, so it is not a causal language model; load it with AutoModelForCausalLM"
        )


def _counted_experts(config: Any) -> str | None:
    """Where a configuration counts several experts, also in one for a part of each layer as DBRX has: `key=count`."""
    parts = {f"{key}.": part for key, part in vars(config).items() if isinstance(part, PreTrainedConfig)}
    for prefix, part in {"": config, **parts}.items():
        for key in EXPERT_COUNTS:
            count = getattr(part, key, None)
            if isinstance(count, int) and count > 1:
                return f"{prefix}{key}={count}"
    return None


def has_recurrent_layers(model: nn.Module) -> bool:
    """Whether some layers carry a state along: state-space models, linear attention, short convolutions, and hybrids.

    By the kinds of layers that the configuration lists. Where it lists none, transformers says it of a class.
    """
    kinds = getattr(text_config(model), "layer_types", None)
    if not kinds:
        return bool(getattr(model, "_is_stateful", False))
    return any(kind == "linear_attention" or not kind.endswith("attention") for kind in kinds)


def find_decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and module of the list of decoder layers: the longest module list whose items hold a linear map.

    Raises:
        UnsupportedModelError: There is no such list.
    """
    best: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or (best and len(module) <= len(best[1])):
            continue
        if len(module) and all(any(projection_shape(m) for m in layer.modules()) for layer in module):
            best = (name, module)
    if best is None:
        raise UnsupportedModelError(
            f"no list of decoder layers found in {type(model).__name__}; pass `target_modules=` with the names of the "
            "down-projections to edit"
        )
    return best


def find_down_projections(model: nn.Module) -> list[str]:
    """Names of the down-projections, one a decoder layer, in order.

    Raises:
        UnsupportedModelError: A layer has none, or more than one that would fit.
    """
    found = possible_down_projections(model)
    for index, names in enumerate(found):
        if len(names) != 1:
            raise UnsupportedModelError(
                f"layer {index} of {type(model).__name__} should have one projection from the MLP's width back to "
                f"{text_config(model).hidden_size}, found {names or 'none'}; pass `target_modules=` with the names to "
                "edit"
            )
    return [name for names in found for name in names]


def find_mlp_projections(model: nn.Module) -> list[list[str]]:
    """For each decoder layer the names of the projections of its MLP, the down-projection last.

    Before it come those beside it from the stream into its hidden units: gate and up-projection, one that writes both,
    or a single one. An MLP in which none is found by its shape, as one of several experts, has its down-projection
    alone.

    Raises:
        UnsupportedModelError: See [`find_down_projections`].
    """
    return [[*find_writers(model, name), name] for name in find_down_projections(model)]


def find_writers(model: nn.Module, down: str) -> list[str]:
    """Names of the projections beside a down-projection that write what it reads; none if they are not found."""
    parent, _, reader = down.rpartition(".")
    if ATTENTION.search(parent):
        return []
    hidden, stream = projection_shape(model.get_submodule(down)) or (0, 0)
    shapes = {(stream, hidden), (stream, 2 * hidden)}
    siblings = model.get_submodule(parent).named_children()
    return [f"{parent}.{name}" for name, child in siblings if name != reader and projection_shape(child) in shapes]


def mlp_projections_of(model: nn.Module, names: Sequence[str]) -> set[str]:
    """Those of the projections with these names that are one of the MLP of their decoder layer.

    Raises:
        UnsupportedModelError: The layers, or the down-projection of one with such a name, are not found.
    """
    prefix, layers = find_decoder_layers(model)
    inside = {name: rest[0] for name in names if (rest := name.removeprefix(f"{prefix}.").split("."))[0].isdecimal()}
    found: set[str] = set()
    for index in dict.fromkeys(inside.values()):
        if int(index) < len(layers):
            own = [f"{prefix}.{index}.{name}" for name in _possible_in_layer(text_config(model), layers[int(index)])]
            if len(own) != 1:
                raise UnsupportedModelError(f"layer {index} of {type(model).__name__} has {own or 'none'}")
            found |= {*find_writers(model, own[0]), own[0]}
    return found.intersection(names)


def possible_down_projections(model: nn.Module) -> list[list[str]]:
    """For each decoder layer the names of what may be its down-projection: of one with experts, for instance, none."""
    config = text_config(model)
    prefix, layers = find_decoder_layers(model)
    return [
        [f"{prefix}.{index}.{name}" for name in _possible_in_layer(config, layer)] for index, layer in enumerate(layers)
    ]


def _possible_in_layer(config: Any, layer: nn.Module) -> list[str]:
    widths = {w for w in (getattr(config, key, None) for key in WIDTHS) if isinstance(w, int)}
    # A projection that already has an adapter is one candidate and not several.
    inside = tuple(f"{name}." for name, module in layer.named_modules() if isinstance(module, BaseTunerLayer))
    candidates = {
        name: shape
        for name, module in layer.named_modules()
        if (shape := projection_shape(module))
        and shape[1] == config.hidden_size
        and not ATTENTION.search(name)
        and not name.startswith(inside)
        and not _convolves(layer.get_submodule(name.rpartition(".")[0]))
    }
    exact = [name for name, shape in candidates.items() if shape[0] in widths]
    return exact or [name for name, shape in candidates.items() if shape[0] > shape[1]]


def _convolves(module: nn.Module) -> bool:
    """Whether a module is a mixer along the sequence, as in state-space models: an MLP has no convolution."""
    return any(isinstance(child, nn.Conv1d) for child in module.children())


def find_token_modules(model: nn.Module) -> list[str]:
    """Names of the input embedding and of the output head.

    Raises:
        UnsupportedModelError: The model has no embedding or no head.
    """
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}  # first names, as PEFT matches them
    if any(part is None or id(part) not in names for part in parts):
        raise UnsupportedModelError(
            f"{type(model).__name__} must have an input embedding and an output head to hold [UNL]'s rows"
        )
    return [names[id(part)] for part in parts]


def ids_in_config(model: Any) -> set[int]:
    """Ids of the tokens that the model's configurations name: those that begin, end and pad, and others with a job."""
    ids: set[int] = set()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for key, value in vars(config).items() if config is not None else ():
            if key.endswith(("token_id", "token_ids", "token_index")):
                ids.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    return ids
