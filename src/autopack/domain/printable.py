"""Foreign text, made harmless for whoever prints it.

What is no printable character is spelt out: controls, ESC and with it every sequence that steers a
terminal (OSC links too), characters that turn the direction of what follows, and invisible ones.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """Spell out everything but printable characters, line ends too."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def lines_of(text: str) -> str:
    """Spell out everything but printable characters, tabs and line ends."""
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in lines)
