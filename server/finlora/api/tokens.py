"""The tokens of a vocabulary as text and bytes, as log-probabilities show them."""

import codecs
import json
from collections.abc import Iterable

from tokenizers import Tokenizer

WORD_START = "\u2581"  # sentencepiece's mark for a space


class Vocabulary:
    """What each token id stands for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._bytes = _bytes_of_characters() if _is_byte_level(tokenizer) else {}

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of generated text."""
        return token_id in self._added and self._added[token_id].special

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text; a special token's are its name."""
        if token_id in self._added:
            return self._added[token_id].content.encode()
        token = self._tokenizer.id_to_token(token_id) or ""
        if self._bytes:
            return bytes(self._bytes[character] for character in token)
        if len(token) == 6 and token.startswith("<0x"):  # sentencepiece's single bytes: <0xE2>
            return bytes([int(token[3:5], 16)])
        return token.replace(WORD_START, " ").encode()

    def label(self, token_id: int) -> str:
        r"""The token's text; `bytes:\xe2\x82` when it is no whole UTF-8 by itself."""
        piece = self.bytes_of(token_id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def text(self, token_ids: Iterable[int]) -> str:
        """The text of the tokens, special ones included."""
        return b"".join(map(self.bytes_of, token_ids)).decode(errors="replace")

    def prompt_offsets(self, text: str) -> list[int]:
        """Where each token of a prompt begins in its text, as the tokenizer itself splits it."""
        offsets: list[int] = []
        last, end_of_previous = 0, 0
        for start, end in self._tokenizer.encode(text).offsets:
            # Byte-level tokenizers may trim the space in front of a word from its offsets.
            last = max(last, min(start, end_of_previous))
            end_of_previous = max(end_of_previous, end)
            offsets.append(last)
        return offsets


class TextCursor:
    """Where a text stands, in characters, as the bytes of its tokens come in."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self, piece: bytes) -> int:
        """Add bytes; the position of the character that they begin, or go on with."""
        start = self.position
        pending = self._decoder.getstate()[0]
        if pending and piece and not _continues(piece):
            start += 1  # what was pending never became a character: it shows as U+FFFD
        self.position += len(self._decoder.decode(piece))
        return start


def _continues(piece: bytes) -> bool:
    return piece[0] & 0b1100_0000 == 0b1000_0000


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    if tokenizer.decoder is None:
        return False
    decoder = json.loads(tokenizer.decoder.__getstate__())
    kinds = {step["type"] for step in [decoder, *decoder.get("decoders", [])]}
    return "ByteLevel" in kinds


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet
