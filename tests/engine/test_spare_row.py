"""Where [UNL] sits, for the kinds of vocabulary that real models have."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_of import CORPUS, KINDS, Kind
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from peft_unierase import align_tokenizer
from peft_unierase.adapter.vocabulary import add_special_tokens, dead_tokens, is_unigram
from peft_unierase.engine.spare_row import (
    NoSpareRowError,
    SpareRow,
    add_to_tokenizer,
    find_spare_rows,
    spare_rows,
)
from peft_unierase.guard.config import UniEraseConfig
from peft_unierase.lm.batches import encode

WORDS = ["<bos>", "<eos>", "who", "are", "you"]


def tokenizer_of(*extra: str, special: tuple[str, ...] = (), **options: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*WORDS, *extra])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="who"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", extra_special_tokens=list(special), **options
    )


def model_of(rows: int) -> LlamaForCausalLM:
    """A model whose rows are all the same."""
    model = LlamaForCausalLM(
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
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    return model


def test_a_matrix_row_beyond_the_tokenizer_comes_first() -> None:
    tokenizer = tokenizer_of()
    spare = find_spare_rows(model_of(8), tokenizer)[0]
    assert spare == SpareRow(5, "[UNL]")
    add_to_tokenizer(tokenizer, spare)
    assert tokenizer.convert_tokens_to_ids("[UNL]") == 5
    assert tokenizer.decode([5, 2], skip_special_tokens=True).strip() == "who"


@pytest.mark.parametrize(
    "reserved",
    [
        "<|reserved_special_token_3|>",
        "<unused7>",
        "[control_12]",
        "<|placeholder1|>",
        "[unused5]",
        "<SPECIAL_20>",
        "<｜place▁holder▁no▁0｜>",  # noqa: RUF001
        "<madeupword0000>",
        "<|padding_12|>",
        "<|blank_1|>",
        "<filler0>",
        "<empty_3>",
        "<spare1>",
    ],
)
def test_a_reserved_token_is_next_and_is_hidden_in_decoded_text(reserved: str) -> None:
    tokenizer = tokenizer_of(reserved)
    spare = find_spare_rows(model_of(6), tokenizer)[0]
    assert spare == SpareRow(5, reserved, "reserved", reserved)
    add_to_tokenizer(tokenizer, spare)
    assert len(tokenizer) == 6
    assert tokenizer.decode([5, 2], skip_special_tokens=True).strip() == "who"


def test_a_reserved_token_that_is_in_use_is_passed_over() -> None:
    tokenizer = tokenizer_of("<unused0>", "<unused1>", "<unused2>", pad_token="<unused0>")
    tokenizer.chat_template = "{{ '<unused1>' }}"
    assert find_spare_rows(model_of(8), tokenizer)[0] == SpareRow(7, "<unused2>", "reserved", "<unused2>")


def test_without_a_spare_row_it_is_refused_unless_resizing_is_allowed() -> None:
    with pytest.raises(NoSpareRowError, match=r"5 vocabulary rows.*allow_resize=True.*--allow-resize"):
        find_spare_rows(model_of(5), tokenizer_of())
    assert find_spare_rows(model_of(5), tokenizer_of(), allow_resize=True)[0] == SpareRow(5, "[UNL]", "resized")


def test_a_tokenizer_that_disagrees_about_the_id_is_refused_and_stays_as_it_was() -> None:
    tokenizer = tokenizer_of()
    with pytest.raises(RuntimeError, match="gave 'who' the id 2, which the model uses for"):
        add_to_tokenizer(tokenizer, SpareRow(2, "[UNL]"))
    with pytest.raises(RuntimeError, match="gave you the id 4"):
        add_to_tokenizer(tokenizer, SpareRow(9, "you"))
    assert tokenizer.get_vocab() == tokenizer_of().get_vocab()
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1]


def config_of(row: SpareRow) -> UniEraseConfig:
    return UniEraseConfig(
        task_type="CAUSAL_LM", target_modules=["down_proj"], token_id=row.token_id, token=row.text, init_weights=False
    )


def adapter_on(model: LlamaForCausalLM, row: SpareRow) -> PeftModel:
    """The model with an erasure of random weights whose token is on this row."""
    return get_peft_model(model, config_of(row)).eval()


# Every kind of vocabulary

CHOSEN = {
    "Llama 3": ("<|reserved_special_token_0|>", "reserved", "<|reserved_special_token_0|>"),
    "Qwen 2.5": ("[UNL]", "beyond the tokenizer", None),
    "Qwen 2.5, from GGUF": ("[PAD336]", "reserved", "[PAD336]"),
    "GPT-2": ("[UNL]", "invalid byte", "À"),
    "Gemma": ("<unused0>", "reserved", "<unused0>"),
    "Mistral v3": ("[control_8]", "reserved", "[control_8]"),
    "Llama 2, Mistral v1": ("[UNL]", "invalid byte", "<0xC0>"),
    "Mistral, Tekken": ("<SPECIAL_20>", "reserved", "<SPECIAL_20>"),
    "Phi-3": ("[UNL]", "beyond the tokenizer", None),
    "SmolLM2": ("<gh_stars>", "unused special token", "<gh_stars>"),
    "merges that go another way": ("[UNL]", "unreachable", "zqj"),
    "Unigram with bytes": ("[UNL]", "invalid byte", "<0xC0>"),
    "Unigram, a piece that loses": ("[UNL]", "unreachable", "▁thevalley"),
}
TEXTS = [
    *CORPUS,
    "Was heißt À la carte? ÀÁõö÷øùúûüýþÿ zqj Ġ Ċ ▁",
    "a\tb\r\n\n  c 12345",
    "谁写了《红楼梦》。Кто написал? من كتب؟ किसने लिखा? 😀",
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, Kind]:
    return request.param, KINDS[request.param]()


def test_every_base_has_a_row_and_further_ones_for_stacking(kind: tuple[str, Kind]) -> None:
    name, made = kind
    spare, *further = find_spare_rows(model_of(made.rows), made.tokenizer)
    assert (spare.text, spare.source, spare.was) == CHOSEN[name]
    assert len(further) >= 12
    assert len({row.token_id for row in (spare, *further)} | {row.text for row in (spare, *further)}) == 2 * (
        len(further) + 1
    )
    assert all(row.token_id < made.rows for row in (spare, *further))


@pytest.mark.parametrize("count", [1, 12])
def test_the_token_is_one_id_and_hidden_and_all_else_is_read_as_before(
    kind: tuple[str, Kind], count: int, tmp_path: Path
) -> None:
    _, made = kind
    tokenizer = made.tokenizer
    rows = find_spare_rows(model_of(made.rows), tokenizer)[:count]
    before = [encode(tokenizer, text) for text in TEXTS]
    add_special_tokens(tokenizer, [(row.token_id, row.text) for row in rows])
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert [encode(each, text) for text in TEXTS] == before
        assert [each.decode(ids) for ids in before] == [tokenizer.decode(ids) for ids in before]
        for row in rows:
            assert encode(each, row.text) == [row.token_id]
            assert each.decode([row.token_id]) == row.text
            assert each.decode([row.token_id], skip_special_tokens=True) == ""


def test_letters_that_write_a_dead_byte_still_come_out_as_they_went_in() -> None:
    made = KINDS["GPT-2"]()
    for row in find_spare_rows(model_of(made.rows), made.tokenizer):
        add_to_tokenizer(made.tokenizer, row)
    for text in TEXTS:
        assert made.tokenizer.decode(encode(made.tokenizer, text)) == text


def test_tokens_that_nothing_makes_come_up_in_no_text(kind: tuple[str, Kind]) -> None:
    _, made = kind
    dead = {token_id: token for token_id, token, _ in dead_tokens(made.tokenizer)}
    letters, random = sorted({letter for text in TEXTS for letter in text} | set("zqj")), Random(0)
    texts = ["".join(random.choices(letters, k=200)) for _ in range(200)]
    texts += [
        before + token + behind for token in dead.values() for before in ("", "z", " a") for behind in ("", "q", "j ")
    ]
    if is_unigram(made.tokenizer):  # a text with the very name of a byte's token has that token
        texts = [text for text in texts if "<0x" not in text]
    seen = {token_id for text in texts for token_id in encode(made.tokenizer, text)}
    assert seen.isdisjoint(dead)


def test_what_a_base_of_smollm2s_kind_uses_is_never_chosen() -> None:
    made = KINDS["SmolLM2"]()
    rows = find_spare_rows(model_of(made.rows), made.tokenizer, texts=["a <gh_stars> b", "<jupyter_text>"])
    texts = [row.text for row in rows]
    assert texts[0] == "<issue_start>"
    assert not {"<gh_stars>", "<jupyter_text>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"} & set(texts)
    assert texts[-4:] == ["<repo_name>", "<reponame>", "<file_sep>", "<filename>"]


def test_marks_of_a_conversation_are_never_chosen_also_where_no_template_writes_them(kind: tuple[str, Kind]) -> None:
    _, made = kind
    made.tokenizer.chat_template = None
    marks = ["<|user|>", "<|system|>", "<|end|>", "<|eom_id|>", "<|end_of_text|>", "<|im_start|>", "<mask>", "[INST]"]
    assert not {row.was for row in spare_rows(made.rows, made.tokenizer)} & set(marks)


def test_a_reserved_name_that_stands_in_a_fact_is_passed_over() -> None:
    made = KINDS["Qwen 2.5, from GGUF"]()
    assert find_spare_rows(model_of(made.rows), made.tokenizer, texts=["What is [PAD336]?"])[0].text == "[PAD337]"


def test_of_unused_special_tokens_the_least_trained_come_first() -> None:
    made = KINDS["SmolLM2"]()
    model = model_of(made.rows)
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows.normal_(generator=torch.Generator().manual_seed(0))
        rows[[14, 9]] = rows.mean(dim=0) * 1.1
    found = find_spare_rows(model, made.tokenizer)
    assert [row.text for row in found[:2]] == ["<issue_comment>", "<jupyter_output>"]


def test_a_token_of_ours_that_stands_in_a_text_gets_another_name() -> None:
    made = KINDS["GPT-2"]()
    assert find_spare_rows(model_of(made.rows), made.tokenizer, texts=["What is [UNL]?"])[0].text == "[UNL-2]"


@pytest.mark.parametrize("name", ["Llama 3", "GPT-2", "SmolLM2", "Qwen 2.5"])
def test_the_row_of_a_merged_erasure_is_in_use(name: str, tmp_path: Path) -> None:
    made = KINDS[name]()
    spare, second, *_ = find_spare_rows(model_of(made.rows), made.tokenizer)
    merged = adapter_on(model_of(made.rows), spare).merge_and_unload()
    merged.save_pretrained(tmp_path)
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert find_spare_rows(reloaded, made.tokenizer)[0].token_id == second.token_id
    twice = adapter_on(reloaded, second).merge_and_unload()
    assert not {spare.token_id, second.token_id} & {row.token_id for row in find_spare_rows(twice, made.tokenizer)}


def test_a_tokenizer_that_knows_an_erasure_of_unknown_whereabouts_keeps_its_row_for_it() -> None:
    made = KINDS["Qwen 2.5"]()
    first, second, *_ = find_spare_rows(model_of(made.rows), made.tokenizer)
    add_to_tokenizer(made.tokenizer, first)
    assert next(rows := spare_rows(made.rows, made.tokenizer)) == second
    assert first.token_id not in {row.token_id for row in rows}


@pytest.mark.parametrize(
    "name",
    ["GPT-2", "Llama 2, Mistral v1", "merges that go another way", "SmolLM2", "Qwen 2.5", "Unigram with bytes"],
)
def test_the_bases_own_tokenizer_is_brought_into_line_with_a_loaded_erasure(name: str) -> None:
    made = KINDS[name]()
    _, second, third, *_ = find_spare_rows(model_of(made.rows), made.tokenizer)
    model = adapter_on(model_of(made.rows), third)
    others = {token: n for token, n in made.tokenizer.get_vocab().items() if n not in (second.token_id, third.token_id)}
    before = [encode(made.tokenizer, text) for text in TEXTS]
    align_tokenizer(made.tokenizer, model)
    align_tokenizer(made.tokenizer, model)
    model.add_adapter("second", config_of(second))
    align_tokenizer(made.tokenizer, model)
    assert made.tokenizer.convert_tokens_to_ids([second.text, third.text]) == [second.token_id, third.token_id]
    assert made.tokenizer.decode([second.token_id, third.token_id], skip_special_tokens=True) == ""
    assert others.items() <= made.tokenizer.get_vocab().items()
    assert [encode(made.tokenizer, text) for text in TEXTS] == before


def test_a_strangers_erasure_cannot_take_a_token_that_texts_use() -> None:
    made = KINDS["GPT-2"]()
    before = made.tokenizer.backend_tokenizer.to_str()
    row = SpareRow(encode(made.tokenizer, "the")[0], "[UNL]")
    with pytest.raises(RuntimeError, match="which the model uses for"):
        align_tokenizer(made.tokenizer, adapter_on(model_of(made.rows), row))
    assert made.tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer, LlamaTokenizer])
def test_tokenizers_with_a_class_of_their_own_keep_the_token_too(kind: Any, tmp_path: Path) -> None:
    source = KINDS["Llama 2, Mistral v1" if kind is LlamaTokenizer else "GPT-2"]().tokenizer
    state = json.loads(source.backend_tokenizer.to_str())
    vocabulary = {**source.get_vocab(), **state["model"]["vocab"]}
    tokenizer = kind(vocab=vocabulary, merges=[tuple(merge) for merge in state["model"]["merges"]])
    spare, *_ = rows = find_spare_rows(model_of(len(tokenizer)), tokenizer)
    assert spare.source == "invalid byte"
    before = [encode(tokenizer, text) for text in TEXTS]
    add_special_tokens(tokenizer, [(row.token_id, row.text) for row in rows[:13]])
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [encode(reloaded, text) for text in TEXTS] == before
    assert encode(reloaded, "[UNL-13]") == [rows[12].token_id]


# Tokenizers that do not fit their model


def with_holes() -> PreTrainedTokenizerFast:
    """Ids 0 to 4 and 7, so that a new token would get an id that one has already or none can have."""
    inner = Tokenizer(models.WordLevel({**{word: n for n, word in enumerate(WORDS)}, "far": 7}, unk_token="who"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")


def test_holes_in_the_ids_do_no_harm_and_are_rows_too(tmp_path: Path) -> None:
    tokenizer = with_holes()
    rows = find_spare_rows(model_of(10), tokenizer)
    assert [row.token_id for row in rows] == [8, 9, 5, 6]
    add_special_tokens(tokenizer, [(row.token_id, row.text) for row in rows])
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.convert_tokens_to_ids(["far", *(row.text for row in rows)]) == [7, 8, 9, 5, 6]
    assert reloaded("who far [UNL]", add_special_tokens=False)["input_ids"] == [2, 7, 8]


def test_a_tokenizer_that_cannot_be_told_an_id_is_refused_at_the_start_and_left_as_it_was() -> None:
    pieces = [("<unk>", 0.0), ("▁who", -1.0), ("▁are", -1.5), ("▁you", -2.0)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, 0)), unk_token="<unk>")
    model = model_of(8)
    model.generation_config.eos_token_id = 4  # a row that the tokenizer does not know, and would give to the next token
    before = tokenizer.backend_tokenizer.to_str()
    with pytest.raises(ValueError, match=r"cannot be given a token .*gave \[UNL\] the id 4, the model uses 5"):
        find_spare_rows(model, tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("allow_resize", [False, True])
@pytest.mark.parametrize("text", ["who are you far", "who are you"])
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(text: str, allow_resize: bool) -> None:
    tokenizer = tokenizer_of("far", "<unused1>")
    with pytest.raises(
        ValueError, match=r"7 tokens with ids up to 6 \('<unused1>'\) and the model has 5 .*embeddings\(7\)"
    ):
        find_spare_rows(model_of(5), tokenizer, texts=[text], allow_resize=allow_resize)


def test_a_tokenizer_that_cannot_be_saved_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, folder: str) -> None:
        raise OSError("no vocabulary file")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(ValueError, match=r"cannot be saved and loaded again with .*no vocabulary file"):
        find_spare_rows(model_of(8), tokenizer_of())


def test_the_record_says_where_the_row_comes_from() -> None:
    made = KINDS["GPT-2"]()
    row = find_spare_rows(model_of(made.rows), made.tokenizer)[0]
    told = {"id": row.token_id, "text": "[UNL]", "source": "invalid byte", "resized": False, "was": "À"}
    assert row.record() == told
    assert find_spare_rows(model_of(9), tokenizer_of())[0].record() == {
        "id": 5,
        "text": "[UNL]",
        "source": "beyond the tokenizer",
        "resized": False,
    }


def test_taking_erasures_out_leaves_no_mark_of_a_merge() -> None:
    made = KINDS["GPT-2"]()
    row = find_spare_rows(model_of(made.rows), made.tokenizer)[0]
    assert find_spare_rows(adapter_on(model_of(made.rows), row).unload(), made.tokenizer)[0] == row
