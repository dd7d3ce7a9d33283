"""Where [UNL] sits, for the kinds of vocabulary that real models have."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peft_unierase.engine.spare_row import NoSpareRowError, SpareRow, add_to_tokenizer, find_spare_row

WORDS = ["<bos>", "<eos>", "who", "are", "you"]


def tokenizer_of(*extra: str, special: tuple[str, ...] = (), **options: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*WORDS, *extra])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="who"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", extra_special_tokens=list(special), **options
    )


def model_of(rows: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def test_a_matrix_row_beyond_the_tokenizer_comes_first() -> None:
    tokenizer = tokenizer_of()
    spare = find_spare_row(model_of(8), tokenizer)
    assert spare == SpareRow(5, "[UNL]")
    add_to_tokenizer(tokenizer, spare)
    assert tokenizer.convert_tokens_to_ids("[UNL]") == 5
    assert tokenizer.decode([5, 2], skip_special_tokens=True).strip() == "who"


@pytest.mark.parametrize(
    "reserved",
    ["<|reserved_special_token_3|>", "<unused7>", "[control_12]", "<|placeholder1|>", "[unused5]", "<SPECIAL_20>"],
)
def test_a_reserved_token_is_next_and_is_hidden_in_decoded_text(reserved: str) -> None:
    tokenizer = tokenizer_of(reserved)
    spare = find_spare_row(model_of(6), tokenizer)
    assert spare == SpareRow(5, reserved)
    add_to_tokenizer(tokenizer, spare)
    assert len(tokenizer) == 6
    assert tokenizer.decode([5, 2], skip_special_tokens=True).strip() == "who"


def test_a_reserved_token_that_is_in_use_is_passed_over() -> None:
    tokenizer = tokenizer_of("<unused0>", "<unused1>", "<unused2>", pad_token="<unused0>")
    tokenizer.chat_template = "{{ '<unused1>' }}"
    assert find_spare_row(model_of(8), tokenizer) == SpareRow(7, "<unused2>")


def test_without_a_spare_row_it_is_refused_unless_resizing_is_allowed() -> None:
    with pytest.raises(NoSpareRowError, match=r"5 vocabulary rows.*allow_resize=True.*--allow-resize"):
        find_spare_row(model_of(5), tokenizer_of())
    assert find_spare_row(model_of(5), tokenizer_of(), allow_resize=True) == SpareRow(5, "[UNL]", resized=True)


def test_a_tokenizer_that_disagrees_about_the_id_is_refused() -> None:
    with pytest.raises(RuntimeError, match="gave"):
        add_to_tokenizer(tokenizer_of(), SpareRow(9, "[UNL]"))
