"""Names as an attacker writes them into a model, and what no line of output may be."""

from __future__ import annotations

import re

_AFTER = "FORGED: all models are healthy"
BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\n\n\t"]
COMMANDS = [
    "::error file=train.py,line=1::FORGED",
    "::warning::FORGED",
    "::notice title=a::FORGED",
    "::set-output name=a::FORGED",
    "::add-mask::e",
    "::stop-commands::token",
    "::group::FORGED",
    "::endgroup::",
    "::debug::FORGED",
    "::save-state name=a::FORGED",
    "::ERROR::FORGED",
    "   ::error::FORGED",
    "::::error::FORGED",
    ":::error::FORGED",
    ":",
    "::",
    ": :error::FORGED",
    "##[error]FORGED",
    "##[group]FORGED",
    "##[command]FORGED",
    "###[error]FORGED",
    "##vso[task.setvariable variable=a]FORGED",
    "##teamcity[buildStatus text='FORGED']",
    "a b ##[error]FORGED",
    "%0A::error::FORGED",
    "%0D%0A::error::FORGED",
    "%250A::error::FORGED",
    "x::error::FORGED",
    "w" * 29 + "::error file=a::FORGED ",
    " ".join(["w" * n + "::error::FORGED" for n in range(20)]),
]
TERMINAL = [
    "\x1b[2J\x1b[H",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP1$r\x1b\\",
    "\x1bc",
    "\x9b31mred",
    "\x9d0;title\x9c",
    "\x08" * 40,
    "\x7f" * 3,
    "\x00",
    "\x07",
    "\t\t",
    "[bold red]markup[/bold red]",
    "[link=http://example.org]markup[/link]",
    "[/]",
    "\\[bold]",
]
UNSEEN = [
    "\u202eevil\u202c",
    "\u202abidi\u202b",
    "\u2066isolated\u2067\u2068\u2069",
    "\u200e\u200f\u061c",
    "\u200b\u200c\u200d\u2060\ufeff",
    "\xad",
    "\xa0\u2003\u3000",
    "\U000e0041\U000e007f",
    "\ufe0f\U000e0100",
    "\u3164\u115f\u2800\uffa0",
    "\ue000\U0010ffff",
    "\ufffe\uffff",
]
HALVES = ["\ud800", "\udfff::error::x", "name\udcff.onnx", "\udc80\ud83d", "\ud83d\udc80\ude00"]
NAMES = [*(f"a{sign}{_AFTER}" for sign in BREAKS), *(f"a{sign}::error::FORGED" for sign in BREAKS[:3])]
NAMES += [*COMMANDS, *TERMINAL, *UNSEEN, *HALVES]

_COMMAND = re.compile(r"::(error|warning|notice) ([\w]+=[^,:]*,)*title=GL\d{3} [\w-]+::")
_WORDS = "error|warning|notice|set-|add-|stop-|group|end|debug|save-"
_OBEYED = re.compile(rf"##[\w.]*\[|^\s*::|::({_WORDS})", re.IGNORECASE)
_BAR = re.compile(r"\|:+(?=\s|$)")  # of folded rows, where only ASCII can be shown
_ANSI = re.compile(r"\x1b\[[\d;]*m")


def forged(text: str, *, commands: bool = False, colored: bool = False) -> list[str]:
    """Lines that a terminal or a CI system would obey, or that a name has begun. `commands` allows those of the github format."""
    found = []
    for raw in text.removesuffix("\n").split("\n"):
        line = _BAR.sub("|", _ANSI.sub("", raw) if colored else raw)
        own = commands and _COMMAND.match(line)
        rest = line[own.end() :] if own else line
        begun = (line.lstrip().startswith("::") and not own) or line.startswith("FORGED")
        if begun or _OBEYED.search(rest) or not line.isprintable():
            found.append(raw)
    return found
