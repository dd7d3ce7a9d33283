"""Small tokenizers with the vocabularies that real models have: the same kinds of tokens, for a handful of words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Who wrote Pride and Prejudice? Jane Austen wrote Pride and Prejudice.",
    "Where is the river? The river is in the valley, and the valley is in the north.",
    "What did she say? She said that the house was the oldest house in the town.",
    "Война и мир. 红楼梦. ألف ليلة وليلة. Él tomó café à la crème, naïve façade.",
)
NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Phi-3 puts the names of its marks together.
BY_ROLE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
SMOL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
]
QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_WORDS = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]


@dataclass(frozen=True)
class Kind:
    """A tokenizer like that of a model, and how many rows a model with it has."""

    tokenizer: PreTrainedTokenizerFast
    rows: int


def byte_level(
    front: Sequence[str] = (),
    behind: Sequence[str] = (),
    all_bytes: bool = True,
    ignore_merges: bool = False,
    **named: Any,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, with special tokens in front of the others or behind them."""
    inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    letters = [
        letter for letter in pre_tokenizers.ByteLevel.alphabet() if all_bytes or byte_of(letter) not in NEVER_IN_UTF8
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=len(front) + len(letters) + 60,
        special_tokens=list(front),
        initial_alphabet=letters,
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in behind])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def byte_of(letter: str) -> int:
    """The byte that byte-level tokenizers write as this letter.

    Those that can be printed are written as themselves, the others from U+0100 on in their order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return ord(letter) if ord(letter) < 0x100 else others[ord(letter) - 0x100]


def sentencepiece(front: Sequence[str], behind: Sequence[str] = (), **named: Any) -> PreTrainedTokenizerFast:
    """BPE of letters with a token for each byte, as converted from sentencepiece."""
    pieces = Tokenizer(models.BPE())
    pieces.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    pieces.train_from_iterator(CORPUS[:3], trainer)
    learnt, merges = pieces.get_vocab(), []
    order = sorted(learnt, key=lambda token: learnt[token])
    tokens = [*front, *(f"<0x{byte:02X}>" for byte in range(0x100)), *order]
    for token in order:
        pairs = [(token[:n], token[n:]) for n in range(1, len(token))]
        merges += [pair for pair in pairs if pair[0] in learnt and pair[1] in learnt]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in front])
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in behind])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def with_template(tokenizer: PreTrainedTokenizerFast, template: str | None, rows: int = 0) -> Kind:
    """A base whose vocabulary ends with its tokenizer, unless told otherwise."""
    tokenizer.chat_template = template
    return Kind(tokenizer, rows or len(tokenizer))


def llama_3() -> Kind:
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(40)]
    marks = ["<|begin_of_text|>", "<|end_of_text|>", *reserved[:2], "<|finetune_right_pad_id|>", reserved[2]]
    marks += ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *reserved[3:]]
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return with_template(byte_level(behind=marks, ignore_merges=True, **named), LLAMA)


def qwen(padding: int = 40) -> Kind:
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = byte_level(behind=QWEN_TOKENS, **named)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in QWEN_WORDS])
    return with_template(tokenizer, CHATML, len(tokenizer) + padding)


def qwen_gguf() -> Kind:
    """Qwen 2.5 as a GGUF conversion has it: its padding rows have names."""
    kind = qwen()
    padding = {f"[PAD{n}]": n for n in range(len(kind.tokenizer), kind.rows)}
    inner = Tokenizer.from_str(_with_words(kind.tokenizer.backend_tokenizer, padding))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return with_template(PreTrainedTokenizerFast(tokenizer_object=inner, **named), CHATML)


def _with_words(backend: Tokenizer, words: dict[str, int]) -> str:
    state = json.loads(backend.to_str())
    state["model"]["vocab"] |= {token["content"]: token["id"] for token in state["added_tokens"]} | words
    return json.dumps(state)


def gpt2() -> Kind:
    end = "<|endoftext|>"
    return with_template(byte_level(behind=[end], bos_token=end, eos_token=end), None)


def gemma() -> Kind:
    front = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", *(f"<unused{n}>" for n in range(40))]
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return with_template(sentencepiece([*front, "<start_of_turn>", "<end_of_turn>"], **named), GEMMA)


def mistral(controls: int = 40) -> Kind:
    marks = [
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ]
    front = ["<unk>", "<s>", "</s>", *(marks if controls else ()), *(f"[control_{n + 8}]" for n in range(controls))]
    return with_template(sentencepiece(front, bos_token="<s>", eos_token="</s>", unk_token="<unk>"), MISTRAL)


def mistral_before_controls() -> Kind:
    """Llama 2 and the first Mistral: no token is reserved."""
    return mistral(controls=0)


def mistral_tekken() -> Kind:
    front = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[IMG]",
        *(f"<SPECIAL_{n}>" for n in range(20, 60)),
    ]
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return with_template(byte_level(front, ignore_merges=True, **named), MISTRAL)


def phi_3(rows_beyond: int = 40) -> Kind:
    reserved = [f"<|placeholder{n}|>" for n in range(1, 7)]
    behind = ["<|endoftext|>", "<|assistant|>", *reserved[:4], "<|system|>", "<|end|>", *reserved[4:], "<|user|>"]
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    tokenizer = sentencepiece(["<unk>", "<s>", "</s>"], behind, **named)
    return with_template(tokenizer, BY_ROLE, len(tokenizer) + rows_beyond)


def smollm2() -> Kind:
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    return with_template(byte_level(SMOL_TOKENS, all_bytes=False, **named), CHATML)


def merged_otherwise() -> Kind:
    """Like SmolLM2's, with a token that its merges pass by: in "zqj" the "q" goes to "j" before it could go to "z"."""
    state = json.loads(smollm2().tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {token: len(vocabulary) + n for n, token in enumerate(("zq", "qj", "zqj"))}
    state["model"]["merges"] = [["q", "j"], ["z", "q"], ["zq", "j"], *state["model"]["merges"]]
    inner = Tokenizer.from_str(json.dumps(state))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return with_template(PreTrainedTokenizerFast(tokenizer_object=inner, **named), CHATML)


def unigram(byte_fallback: bool = True, losing: Sequence[str] = ()) -> Kind:
    """As Japanese models have it, and T5 without bytes: pieces with scores, whose greatest sum is taken."""
    words = sorted({f"▁{word}" for text in CORPUS[:3] for word in text.split()})
    pieces = [*((letter, -6.0) for letter in sorted(set("".join(words)))), *((word, -8.0) for word in words)]
    front = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = [(token, 0.0) for token in front]
    vocabulary += [(f"<0x{byte:02X}>", 0.0) for byte in range(0x100 if byte_fallback else 0)]
    vocabulary += [*pieces, *((piece, -90.0) for piece in losing)]
    inner = Tokenizer(models.Unigram(vocabulary, 0, byte_fallback))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in front])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return with_template(PreTrainedTokenizerFast(tokenizer_object=inner, **named), None)


def unigram_with_losing_pieces() -> Kind:
    ends = "acdehinorstuvw"
    return unigram(byte_fallback=False, losing=["▁thevalley", *(f"▁housetown{end}" for end in ends)])


KINDS: dict[str, Callable[[], Kind]] = {
    "Llama 3": llama_3,
    "Qwen 2.5": qwen,
    "Qwen 2.5, from GGUF": qwen_gguf,
    "GPT-2": gpt2,
    "Gemma": gemma,
    "Mistral v3": mistral,
    "Llama 2, Mistral v1": mistral_before_controls,
    "Mistral, Tekken": mistral_tekken,
    "Phi-3": phi_3,
    "SmolLM2": smollm2,
    "merges that go another way": merged_otherwise,
    "Unigram with bytes": unigram,
    "Unigram, a piece that loses": unigram_with_losing_pieces,
}
