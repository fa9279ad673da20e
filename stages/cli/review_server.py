"""What the review page asks its server: the suspects with their decisions, and decisions back.

In: requests of the page. Out: JSON, and lines of data/decisions.csv.
"""

from dataclasses import asdict
from typing import Any

from stages.cli.page_server import PageServer
from stages.cli.review_decisions import DecisionFile
from stages.core.errors import UserError


class ReviewServer(PageServer):
    """Serves one list of suspects and one file of decisions."""

    page = "review"
    command = "luthier review"

    def __init__(self, decisions: DecisionFile, suspects: dict[str, Any], port: int) -> None:
        """Binds the port.

        Args:
            decisions: the file.
            suspects: `items`, `labels` and `who`.
            port: 0 for any free one.
        """
        super().__init__(port)
        self.decisions = decisions
        self.suspects = suspects
        self.by_id = {item["id"]: item for item in suspects["items"]}

    def state(self) -> dict[str, Any]:
        """The suspects and what is decided about them."""
        return {**self.suspects, "decisions": self._decisions()}

    def told(self, name: str, asked: dict[str, str]) -> dict[str, Any] | None:
        """A decision, or the last one taken back."""
        if name == "decide":
            return self._decide(asked)
        return self._undo() if name == "undo" else None

    def _decide(self, asked: dict[str, str]) -> dict[str, Any]:
        item = self.by_id.get(asked.get("id", ""))
        if item is None:
            raise UserError("no such row is under review")
        label = asked.get("label", "")
        if label and (item["label"] is None or label not in self.suspects["labels"]):
            raise UserError(f"'{label}' is no label of these rows" if item["label"] is not None else "the row has no label to change")
        with self.lock:
            self.decisions.decide(item["id"], asked.get("action", ""), label, asked.get("who", ""), asked.get("why", ""))
            return {"id": item["id"], "decisions": self._decisions()}

    def _undo(self) -> dict[str, Any]:
        with self.lock:
            return {"id": self.decisions.undo(), "decisions": self._decisions()}

    def _decisions(self) -> dict[str, Any]:
        """Those about the rows under review."""
        return {name: asdict(decision) for name, decision in self.decisions.all().items() if name in self.by_id}
