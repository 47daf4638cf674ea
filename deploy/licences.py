"""`python -m deploy.licences` names every pinned package whose licence is not one that we may ship with; exit code 1 then.

It reads what the installed packages say of themselves and needs no network. A new licence is a decision: add it to ALLOWED, or
leave the package.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ("requirements.txt", "requirements-dev.txt")
# Of each of them one mention is enough. The LGPL lets a program use a library that is installed beside it as it is.
ALLOWED = re.compile(
    r"\b(MIT|MIT-0|0BSD|ISC|BSD(-[23]-Clause)?|Apache|PSF|PSFL|Python Software Foundation|Public Domain|MPL|Mozilla Public"
    r"|LGPL|Unlicense)\b",
    re.IGNORECASE,
)
# Unless something else is offered beside it (`OR`), this is refused whatever else is said.
REFUSED = re.compile(r"(?<!L)(?<!Lesser )\b(AGPL|GPL|GNU General|GNU Affero|SSPL|BUSL|Commons Clause)", re.IGNORECASE)


def pinned(text: str) -> set[str]:
    """The names of a compiled requirements file, as they are compared."""
    return {normal(name) for name in re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", text, re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def stated(distribution: metadata.Distribution) -> str:
    """All that a package says of its licence, in one line."""
    about = distribution.metadata
    classifiers = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    words = [about.get("License-Expression") or "", *(line.rpartition(" :: ")[2] for line in classifiers)]
    words.append((about.get("License") or "").strip().partition("\n")[0])
    return "; ".join(word for word in words if word) or _first_lines(distribution)


def _first_lines(distribution: metadata.Distribution) -> str:
    """How the licence files of a package begin that says nothing else."""
    names = distribution.metadata.get_all("License-File", [])
    texts = (distribution.read_text(f"licenses/{name}") or "" for name in names)
    return "; ".join(text.strip().partition("\n")[0] for text in texts)


def fault(licence: str) -> str | None:
    """What is wrong with a licence as it is stated; None when we may use it."""
    alternatives = re.split(r"\bOR\b", licence)
    if any(ALLOWED.search(each) and not REFUSED.search(each) for each in alternatives):
        return None
    return f"is under {licence!r}" if licence else "does not say its licence"


def main() -> int:
    names = set().union(*(pinned((ROOT / file).read_text(encoding="utf-8")) for file in PINNED))
    installed = {normal(each.metadata["Name"]): each for each in metadata.distributions()}
    faults = {name: fault(stated(installed[name])) for name in sorted(names & installed.keys())}
    wrong = [f"{name} {text}" for name, text in faults.items() if text]
    print("\n".join(wrong) or f"{len(faults)} packages: every licence is one of those that are allowed.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
