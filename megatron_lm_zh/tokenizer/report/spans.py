"""A text cut at the borders of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_lm_zh.tokenizer.base import Tokenizer


def token_bytes(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[bytes]:
    """UTF-8 of each token's part of a text; where the tokenizer changes the text first, what each token decodes to.

    Args:
        tokenizer: knows what the ids stand for.
        text: a text.
        ids: of the text.
    """
    sizes = tokenizer.token_sizes()[ids, 0].tolist() if ids else []
    content = text.encode()
    if sum(sizes) == len(content) + 1:  # a space is put before the text
        content = b" " + content
    if sum(sizes) != len(content):
        return [tokenizer.decode([id_]).encode() for id_ in ids]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(content[at : at + size])
        at += size
    return pieces
