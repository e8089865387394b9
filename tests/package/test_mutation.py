"""The table of mutations fits the sources; `make mutation` runs it."""

from mutation import mutations


def test_every_old_text_occurs_once():
    assert len(mutations()) > 100
