"""The meter's Lua, read from the package: each script with the parts that it names, and its SHA1.

A file that begins with ``-- uses: one two`` is preceded by ``one.lua`` and ``two.lua``; ``prelude.lua`` precedes all.
``-- rarely: three`` (the next line) makes the functions of ``three.lua`` fields of ``rarely()``: a script makes all its
functions anew each time it runs, which costs more than most of what they do. Not here: sending them.
"""

import re
from dataclasses import dataclass, fields
from hashlib import sha1
from importlib.resources import files

PRELUDE = "prelude"
_HEADER = re.compile(r"(?:-- uses: (?P<uses>.*)\n)?(?:-- rarely: (?P<rarely>.*)\n)?")
_FUNCTION = re.compile(r"^local function (\w+)", re.MULTILINE)
_DECLARED = "local rare, rarely"
_RARELY = """
rarely = function()
  if not rare then
{parts}
    rare = {{{names}}}
  end
  return rare
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis is given it."""

    name: str
    text: str
    sha: str
    """SHA1 of the text in hex, as EVALSHA wants it."""


@dataclass(frozen=True, slots=True)
class Scripts:
    """All scripts; what each is told and answers is in its file."""

    reserve: Script
    extend: Script
    settle: Script
    renew: Script
    sweep: Script
    states: Script
    adjust: Script
    create: Script
    register: Script
    open: Script
    known: Script
    learn_begin: Script
    learn_finish: Script


def load_scripts() -> Scripts:
    """Return every script, as the package had it when this module was imported.

    A worker that is forked after the files have changed has the code of before, and needs the scripts of before.
    """
    return _LOADED


def _load(name: str) -> Script:
    text = _read(name)
    header = _HEADER.match(text)
    uses, rarely = header.group("uses", "rarely") if header is not None else (None, None)
    parts = [_DECLARED, *[_read(part) for part in (PRELUDE, *(uses or "").split())]]
    if rarely:
        rare = "\n".join(_read(part) for part in rarely.split())
        names = ", ".join(f"{function} = {function}" for function in _FUNCTION.findall(rare))
        parts.append(_RARELY.format(parts=rare, names=names))
    whole = "\n".join([*parts, text])
    return Script(name, whole, sha1(whole.encode(), usedforsecurity=False).hexdigest())


def _read(name: str) -> str:
    return files("meterhouse.limits").joinpath("lua", f"{name}.lua").read_text("utf-8")


_LOADED = Scripts(**{field.name: _load(field.name) for field in fields(Scripts)})
