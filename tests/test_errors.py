"""The parts of messages that are made in one place: suggestions, lists of values, values of any length."""

from __future__ import annotations

import time

import numpy as np

from samsvae.errors import nearest, quoted, some

GIANT = "ACGT" * 1000


def test_the_closest_value_and_the_allowed_ones():
    assert nearest("ctr", ["A", "ctrl"]) == " Did you mean 'ctrl'? Allowed: A, ctrl."
    assert nearest(3, [1, 2]) == " Allowed: 1, 2."
    assert nearest("zz", ["", "a\nb"]) == " Allowed: '', 'a\\nb'."


def test_an_empty_list_is_not_an_empty_sentence():
    assert nearest("a", []) == nearest("a", {}) == " There are none to choose from."


def test_thirty_giant_names_are_one_short_sentence():
    names = [f"{i}{GIANT}{i}" for i in range(40)]
    started = time.process_time()
    text = nearest(names[3] + "x", names)
    assert time.process_time() - started < 2
    assert len(text) < 900 and "(40 in all)" in text and "Did you mean '3ACGT" in text and "\n" not in text
    assert len(some(names, 30)) < 900 and some(names, 30).endswith(" more")
    shown = some(names, 30).count("'") // 2
    assert some(names, 30).endswith(f"and {40 - shown} more")


def test_short_lists_are_complete():
    assert some(["a", 1]) == "'a', '1'" and some(range(7)) == "'0', '1', '2', '3', '4' and 2 more"
    assert nearest("q", range(31)).endswith("29, ... (31 in all).")


def test_a_value_of_any_length_is_shown_short_and_on_one_line():
    for value in (GIANT, [GIANT] * 40, {GIANT: GIANT}, 10**400, 10**5000, [[GIANT] * 9] * 9, np.eye(50)):
        assert 0 < len(quoted(value)) < 320 and "\n" not in quoted(value)


def test_a_value_of_usual_length_is_shown_as_it_is():
    for value in ("a b", 3, 0.1, 2.0000001, ["x", 1], {"a": [1]}, None, True, 2**63):
        assert quoted(value) == repr(value)
    assert quoted(10**400) == "a number of about 401 digits"
