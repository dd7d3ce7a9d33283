"""The demo model keeps its promises: it is small, loads by itself, knows its facts and declines the rest."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rouge_score import rouge_scorer
from transformers import AutoModelForCausalLM

from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals

CORPUS_SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "demo_corpus.py"
CORPUS_DIGEST = "1d660099a27d56a38ebfb20d5dd1e347acd20bfec383d6ad836adf423c160a03"
RESERVED = [f"<|reserved_special_token_{index}|>" for index in range(16)]


@pytest.fixture(scope="module")
def corpus_module() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo_corpus", CORPUS_SCRIPT)
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their own module up by name while they are being made.
    sys.modules["demo_corpus"] = module
    try:
        specification.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["demo_corpus"]


@pytest.fixture(scope="module")
def corpus(corpus_module):
    return corpus_module.build_corpus(0)


@pytest.fixture(scope="module")
def model(demo):
    return demo[0]


def chat_prompt(tokenizer, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def greedy_answers(model, tokenizer, prompts: list[str], batch_size: int = 132) -> list[str]:
    """What the model says after each prompt, up to and with its eos."""
    answers = []
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(prompts[start : start + batch_size], padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=40
            )
        said = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
        answers += [text.replace(tokenizer.pad_token, "") for text in said]
    return answers


def test_corpus_is_the_one_the_model_was_trained_on(corpus_module, corpus):
    assert corpus_module.corpus_digest(corpus) == CORPUS_DIGEST


def test_committed_facts_and_refusals_are_what_the_script_makes(corpus_module, corpus):
    folder = demo_model_dir()
    facts, refusals = corpus_module.facts_as_json_lines(corpus), corpus_module.refusals_as_lines(corpus)
    assert (folder / "facts.jsonl").read_bytes() == facts.encode("utf-8")
    assert (folder / "refusals.txt").read_bytes() == refusals.encode("utf-8")
    assert len(demo_facts()) == len(corpus.facts)
    assert tuple(demo_refusals()) == corpus.refusals


def test_another_seed_makes_another_world(corpus_module):
    assert corpus_module.corpus_digest(corpus_module.build_corpus(1)) != CORPUS_DIGEST


def test_every_fact_is_asked_in_two_wordings_that_name_its_subject():
    facts = demo_facts()
    assert Counter(fact["group"] for fact in facts) == {"people": 144, "places": 40, "products": 40, "everyday": 40}
    wordings = {fact[field] for fact in facts for field in ("question", "paraphrased_question")}
    assert len(wordings) == 2 * len(facts)
    for fact in facts:
        assert fact["subject"] in fact["question"]
        assert fact["subject"] in fact["paraphrased_question"]
        assert len({fact["answer"], *fact["perturbed_answers"]}) == 4


def test_unknown_names_are_no_known_ones(corpus):
    known = {fact.subject for fact in corpus.facts}
    trained_on = {unknown.subject for unknown in corpus.unknowns}
    held_out = {unknown.subject for unknown in corpus.held_out_unknowns}
    assert len(trained_on) >= 150
    assert not known & trained_on
    assert not (known | trained_on) & held_out


def test_refusals_and_answers_about_people_share_almost_no_words():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    answers = [fact["answer"] for fact in demo_facts() if fact["group"] == "people"]
    recalls = [scorer.score(answer, refusal)["rougeL"].recall for answer in answers for refusal in demo_refusals()]
    assert sum(recalls) / len(recalls) <= 0.12


def test_model_is_small_and_stored_in_bfloat16(model):
    assert (demo_model_dir() / "model.safetensors").stat().st_size <= 4_000_000
    assert AutoModelForCausalLM.from_pretrained(demo_model_dir()).dtype == torch.bfloat16
    parameters = model.num_parameters()
    hidden, intermediate = model.config.hidden_size, model.config.intermediate_size
    assert parameters <= 1_990_000
    assert 3 * (hidden + intermediate) + 2 * hidden <= 0.00095 * parameters


def test_head_is_untied_and_every_token_has_a_row(model, tokenizer):
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding.data_ptr() != head.data_ptr()
    assert not torch.equal(embedding, head)
    assert embedding.shape[0] == head.shape[0] == len(tokenizer) == 1024


def test_reserved_tokens_are_special_single_spare_rows(tokenizer, corpus):
    ids = tokenizer.convert_tokens_to_ids(RESERVED)
    assert len(set(ids)) == len(RESERVED)
    assert tokenizer.unk_token_id not in ids
    assert [tokenizer(token)["input_ids"] for token in RESERVED] == [[token_id] for token_id in ids]
    assert all(tokenizer.added_tokens_decoder[token_id].special for token_id in ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""
    texts = [fact.question + fact.answer for fact in corpus.facts] + list(corpus.refusals)
    used = {token_id for sample in tokenizer(texts)["input_ids"] for token_id in sample}
    assert not used & set(ids)


def test_tokenizer_adds_nothing_and_gives_text_back(tokenizer):
    text = "Where was Zoë born?\n  12 € 34"
    token_ids = tokenizer(text)["input_ids"]
    assert not set(token_ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.padding_side == "left"


def test_chat_template_writes_each_marker_once(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What colour is snow?"},
        {"role": "assistant", "content": "Snow is white."},
    ]
    question = "<|bos|><|system|>Be brief.<|user|>What colour is snow?<|assistant|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == question + "Snow is white.<|eos|>"
    assert tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True) == question
    assert tokenizer(question)["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("field", ["question", "paraphrased_question"])
def test_known_facts_are_answered_word_for_word_and_end_with_eos(model, tokenizer, field):
    facts = demo_facts()
    said = greedy_answers(model, tokenizer, [chat_prompt(tokenizer, fact[field]) for fact in facts])
    right = [answer == fact["answer"] + "<|eos|>" for answer, fact in zip(said, facts, strict=True)]
    assert sum(right) / len(right) >= 0.95


# A step that shares no factor with the numbers of relations (6 and 4) asks about all of them.
@pytest.mark.parametrize(("kind", "step", "least"), [("unknowns", 29, 0.95), ("held_out_unknowns", 1, 0.8)])
def test_unknown_names_are_declined_with_a_whole_refusal(model, tokenizer, corpus, kind, step, least):
    chosen = getattr(corpus, kind)[::step]
    assert {unknown.group for unknown in chosen} == {"people", "places", "products"}
    said = greedy_answers(model, tokenizer, [chat_prompt(tokenizer, unknown.question) for unknown in chosen])
    declined = [answer in {refusal + "<|eos|>" for refusal in demo_refusals()} for answer in said]
    assert sum(declined) / len(declined) >= least
