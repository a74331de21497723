"""The tokens of the simulated engine: 256 words, and characters that take several tokens.

Real tokenizers split a rare character's bytes over two or three tokens, so the text of some ids is not valid
by itself. This vocabulary does the same; otherwise a worker that joins texts at a cut would pass its tests.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

_WORDS: Final = b"""
    a able about above across after again air all along also always among an and angle any are around as
    ask at away back balance basket batch be bear before begin behind bell below best between beyond big
    bird blue board boat body book both bottle bridge bright bring broad brook build but by call can candle
    card care carry castle center change chart circle city clear clock close cloud coast cold color come
    copper corner could count course cover cross current day deep distance do door down draw dream drift
    drive dry each early earth east easy edge eight either end engine enough even evening ever every exact
    fall far farm fast feather field figure find fine fire first five flat float floor flow fold follow
    for forest form four free fresh from front full garden gentle give glass go gold good grain grand gray
    green ground group grow half hand happy harbor hard have hear heavy height hello here high hill hold
    home honey hope hour house how idea if in ink inside iron island it join journey just keep key kind
    king lake lamp land language large last late law lead leaf learn left less letter level lift light like
    line list little long look loud low machine make many map mark market meadow measure memory metal
    middle mile milk mind mirror model moment moon more morning most mountain move much music name narrow
    near never new night nine no noon north not note now number ocean of often oil old on once
""".split()

_SPLIT_CHARACTERS: Final = (
    (b"\xc3", b"\xa9"),  # é
    (b"\xc3", b"\xbc"),  # ü
    (b"\xe2", b"\x86\x92"),  # →
    (b"\xe4\xb8", b"\x96"),  # 世
    (b"\xf0\x9f", b"\x9a\x80"),  # 🚀
    (b"\xf0", b"\x9f\x98", b"\x80"),  # 😀
)

PIECES: Final[tuple[bytes, ...]] = (
    *(b" " + word for word in _WORDS),
    *(part for parts in _SPLIT_CHARACTERS for part in parts),
)
"""The bytes of each token id."""

_BLOCK: Final = 16

_Utf8Decoder: Final = codecs.getincrementaldecoder("utf-8")


def _split_character_ids() -> tuple[tuple[int, ...], ...]:
    ids = iter(range(len(_WORDS), len(PIECES)))
    return tuple(tuple(next(ids) for _ in parts) for parts in _SPLIT_CHARACTERS)


_SPLIT_IDS: Final = _split_character_ids()


def token_ids(key: bytes, count: int) -> list[int]:
    """Make the first ``count`` tokens of the answer to ``key``. Token k depends only on the key and k.

    Every 16 tokens hold one character that is split over two or three of them.
    """
    ids: list[int] = []
    for block in range(-(-count // _BLOCK)):
        digest = hashlib.blake2b(block.to_bytes(4, "big"), key=key, digest_size=_BLOCK + 2).digest()
        words = list(digest[:_BLOCK])
        parts = _SPLIT_IDS[digest[-1] % len(_SPLIT_IDS)]
        start = digest[-2] % (_BLOCK - len(parts) + 1)
        words[start : start + len(parts)] = parts
        ids += words
    return ids[:count]


class Detokenizer:
    """Turns ids into text piece by piece, and holds back an incomplete character until its last token."""

    def __init__(self) -> None:
        self._decoder = _Utf8Decoder(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """Return the characters that these ids complete."""
        return self._decoder.decode(b"".join([PIECES[id_] for id_ in ids]))


def decode(ids: Sequence[int]) -> str:
    """Return the text of all ids. A character that is incomplete at the end is left out."""
    return Detokenizer().feed(ids)
