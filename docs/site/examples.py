"""Lets mkdocstrings show the examples of docstrings as code, also where no heading announces them."""

from __future__ import annotations

import griffe

HEADING = "Examples\n--------\n"


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring and ">>>" in obj.docstring.value and HEADING not in obj.docstring.value:
            text, _, example = obj.docstring.value.partition(">>>")
            obj.docstring.value = f"{text.rstrip()}\n\n{HEADING}>>>{example}"
