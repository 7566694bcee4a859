"""The tests' own scripts: what they tell of one that does not do what it should."""

import pytest

from tests import databases, scripts

pytestmark = databases.only_sqlite


def test_a_script_that_does_not_end_tells_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended by then, with the stack of each of its threads."""
    with scripts.script("say('there')\nrest()\n") as script:
        script.expect("there")
        monkeypatch.setattr(scripts, "DEADLINE", 0.1)
        with pytest.raises(AssertionError, match=r"(?s)does not end.*in rest"):
            script.ended()
