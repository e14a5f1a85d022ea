"""Training of a WordPiece vocabulary as BERT has it: words at white space, each Han character and sign a word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from megatron_lm_zh.tokenizer.huggingface import HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.training.huggingface_files import (
    check_size,
    length_bound,
    unicode_normalizer,
    write_tokenizer,
)
from megatron_lm_zh.tokenizer.training.options import Options, Texts

PREFIX = "##"
"""Written before a piece that goes on with a word."""
UNKNOWN, END = "[UNK]", "[SEP]"
ROLES = {
    "pad_token": "[PAD]",
    "unk_token": UNKNOWN,
    "cls_token": "[CLS]",
    "sep_token": END,
    "mask_token": "[MASK]",
    "eos_token": END,
}
OWN_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", END, "[MASK]")
CLEANING = "as in BERT: control characters are dropped, white space is not kept"
LONGEST_WORD = 100
"""Characters; BERT's bound, above which a word is unknown."""


def train_wordpiece(texts: Texts, options: Options, directory: Path) -> HuggingFaceTokenizer:
    """Writes tokenizer.json and what goes with it.

    Ids: [PAD], [UNK], [CLS], [SEP] (ends documents), [MASK], other special tokens, then characters that go on with a
    word, then characters. Each character of the vocabulary that can go on with a word has a piece for that, too, so a
    word of known characters is never unknown.

    The texts are read twice: the library takes characters in a random order, unless it is given them.

    Raises:
        UserError: the vocabulary size does not suit the text.
    """
    tokenizer = _pipeline(options)
    special = [*OWN_TOKENS, *options.special_tokens]
    alphabet = _alphabet(tokenizer, texts, options.character_coverage)
    going_on = [PREFIX + character for character in alphabet if _goes_on(tokenizer, character)]
    least = len(special) + len(alphabet) + len(going_on)
    options.check_room(least, f"{len(special)} special tokens and the text's {len(alphabet)} characters")
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[*special, *going_on],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=PREFIX,
        max_token_length=length_bound(options),
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    learner.train_from_iterator(texts(), trainer)
    check_size(learner, options)
    tokenizer.model = models.WordPiece(
        vocab=learner.get_vocab(),
        unk_token=UNKNOWN,
        max_input_chars_per_word=LONGEST_WORD,
        continuing_subword_prefix=PREFIX,
    )
    tokenizer.add_special_tokens(special)
    return write_tokenizer(tokenizer, ROLES, directory)


def _pipeline(options: Options) -> tokenizers.Tokenizer:
    """All but the vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=options.lowercase, lowercase=options.lowercase
    )
    first = unicode_normalizer(options.normalization)
    tokenizer.normalizer = bert if first is None else normalizers.Sequence([first, bert])
    words = pre_tokenizers.BertPreTokenizer()
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, digits]) if options.split_digits else words
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX, cleanup=False)
    return tokenizer


def _alphabet(tokenizer: tokenizers.Tokenizer, texts: Texts, coverage: float) -> list[str]:
    """The most frequent characters that make up ``coverage`` of the text, in Unicode's order; white space is none."""
    normalizer = tokenizer.normalizer
    assert normalizer is not None
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    counted = sorted(((character, n) for character, n in counts.items() if not character.isspace()), key=_rarity)
    left = coverage * sum(n for _, n in counted)
    kept = []
    for character, n in counted:
        if left <= 0:
            break
        kept.append(character)
        left -= n
    return sorted(kept)


def _rarity(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]


def _goes_on(tokenizer: tokenizers.Tokenizer, character: str) -> bool:
    """Whether the character can stand within a word, and not at its beginning alone."""
    assert tokenizer.normalizer is not None and tokenizer.pre_tokenizer is not None
    word = tokenizer.normalizer.normalize_str("a" + character)
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1
