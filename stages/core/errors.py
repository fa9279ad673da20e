"""The error a person can act on. Raised anywhere in a stage, printed by core/stage.py as one sentence with exit code 1."""


class UserError(Exception):
    """Something the user can mend: the message names the place, what was found, what was expected and what to do."""
