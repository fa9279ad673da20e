"""What can be wrong with a record of a user's file, and how much of such a record is kept."""

RAW_CHARACTERS = 10_000  # of a record that never became a row; file and line are kept with it


class BadRow(Exception):
    """What was found in a row and what was expected; its place is told by whoever catches it.

    Attributes:
        rule: the name under which the row is rejected: not_json, not_utf8, nul_byte, too_long, duplicate_key, huge_number, not_an_object,
            wrong_columns, or wrong_value.
    """

    rule: str

    def __init__(self, found: str, rule: str = "wrong_value") -> None:
        """A finding that follows the row's place in a sentence."""
        super().__init__(found)
        self.rule = rule


def printable(text: str) -> str:
    """The beginning of a text, at most RAW_CHARACTERS, with what UTF-8 cannot hold written as escapes."""
    return text[:RAW_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
