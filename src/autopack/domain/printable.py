"""Text from outside, made safe to print.

Characters that are not printable are written as escapes: controls, ESC and so every terminal
sequence (OSC links too), characters that change the direction of text, and invisible ones.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """Escape everything but printable characters, line ends too."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def lines_of(text: str) -> str:
    """Escape everything but printable characters, tabs and line ends."""
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in lines)
