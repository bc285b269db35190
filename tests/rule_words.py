"""Text that rules match, or nearly: words of their expressions at random, whole, spoilt, or between other things."""

from __future__ import annotations

import random
from collections.abc import Sequence

from uring_actors.ops.match.syntax import parse
from uring_actors.ops.match.tree import Alt, Assertion, Chars, Concat, Node, Repeat

_FILL = (
    "x = 1\n",
    "import os\n",
    "\n",
    "key: value\n",
    "password = 'hunter2'\n",
    "# comment\n",
    "  \t\n",
    'const a = "b";\n',
)
_AROUND = ("", " ", '"', "'", "\n", ";", "x", "\n\n")


def word(node: Node, rng: random.Random) -> str:
    """A word of the tree, in ASCII where it can be; assertions may not hold."""
    if isinstance(node, Chars):
        plain = [(max(low, 32), min(high, 126)) for low, high in node.ranges if low <= 126 and high >= 32]
        low, high = rng.choice(plain or list(node.ranges))
        return chr(rng.randint(low, high))
    if isinstance(node, Concat):
        return "".join(word(part, rng) for part in node.parts)
    if isinstance(node, Alt):
        return word(rng.choice(node.parts), rng)
    if isinstance(node, Repeat):
        most = node.least + 8 if node.most is None else node.most
        times = rng.choice((node.least, min(most, node.least + 3), rng.randint(node.least, most)))
        return "".join(word(node.inner, rng) for _ in range(times))
    assert isinstance(node, Assertion), node
    return ""


class Maker:
    """Makes files for rules, given as (regex, keywords)."""

    def __init__(self, rules: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._rules = [(parse(regex), keywords) for regex, keywords in rules]

    def text(self, rng: random.Random, pieces: int) -> str:
        return "".join(
            (self._piece(rng) if rng.random() < 0.5 else rng.choice(_FILL)) + rng.choice(("", "\n", "\n"))
            for _ in range(pieces)
        )

    def _piece(self, rng: random.Random) -> str:
        tree, keywords = rng.choice(self._rules)
        text = word(tree, rng)
        chance = rng.random()
        if chance < 0.25 and len(text) > 2:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice('xX9 _\n"') + text[place + 1 :]
        elif chance < 0.3:
            text = text.upper()
        text = rng.choice((*_AROUND, 'key = "')) + text + rng.choice(_AROUND)
        if keywords and rng.random() < 0.3:
            text = f"{rng.choice(keywords)} {text}"
        return text + " gitleaks:allow" if rng.random() < 0.03 else text
