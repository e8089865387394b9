"""Public names and their parameters are a contract: a change that is meant edits the list too."""

from __future__ import annotations

from pathlib import Path

import public_names


def test_public_names_and_signatures_are_those_of_the_list():
    expected = Path(__file__).with_name("public_names.txt").read_text().splitlines()
    found = list(public_names.lines())
    assert set(expected) - set(found) == set(), "gone or changed"
    assert set(found) - set(expected) == set(), "new: python tests/package/public_names.py lists it"
