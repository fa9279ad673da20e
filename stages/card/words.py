"""How card and report write numbers, and what a score of each metric is called.

In: numbers of the reports. Out: text.
"""

from dataclasses import dataclass

TASKS = {"arc_easy": "ARC-easy", "hellaswag": "HellaSwag", "openbookqa": "OpenBookQA", "lambada": "LAMBADA"}
# where an item of lm-eval's own comes from, of which fetch_general knows nothing
OWN = {"available": None, "split": "the task's own", "license": "the dataset's"}
PROMPTS = {
    "plain": "training prompt",
    "label_list": "list of labels",
    "few_shot": "with examples",
    "retrieved": "with the nearest examples",
}
PROMPTS |= {f"{prompt}_scored": f"{words}, likeliest label" for prompt, words in PROMPTS.items()}
OTHERS = {  # what stands beside the base, and its colour
    "tf-idf": ("Classical classifier", "classical"),
    "nearest": ("The nearest training row's answer, copied", "classical"),
    "majority": ("Always the most frequent label", "classical"),
    "tuned_scored": ("Tuned, likeliest label", "tuned"),
}
METRICS = {  # of rows without labels; that of labels is ACCURACY
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
    "exact_match": "exact match",
    "normalised_match": "match after normalisation",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "json_valid": "valid JSON",
    "json_equal": "JSON of the right value",
}
LOSSES = {"bits_per_byte", "nats_per_token"}

NO_BREAK = "\u00a0"


def count(value: float) -> str:
    """A whole number with thousands apart: 15,120."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share in per cent, one decimal; its sign never stands on a line of its own."""
    return f"{100 * share:.1f}{NO_BREAK}%"


def number(value: float) -> str:
    """A number in at most four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def chance(value: float) -> str:
    """A p value in two significant digits."""
    return f"{value:.2g}"


def size(value: float) -> str:
    """Bytes in the decimal unit that fits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds, or minutes where there are two or more."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus; what rounds to nothing has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


@dataclass(frozen=True)
class Metric:
    """What is measured, and how its values are said.

    Attributes:
        name: what it is called.
        is_share: whether values are shares of items that are right, from 0 to 1; the others are means of numbers.
        is_loss: whether less is better.
    """

    name: str
    is_share: bool
    is_loss: bool

    @property
    def better(self) -> str:
        """Which way it points."""
        return "less is better" if self.is_loss else "more is better"

    def value(self, score: float) -> str:
        """A score: 61.3 %, or 1.234 for a number."""
        return percent(score) if self.is_share else f"{score:.3f}"

    def gap(self, difference: float) -> str:
        """A difference with its sign: +39.3 points, or −0.210 for a number."""
        return f"{signed(100 * difference, 1)} points" if self.is_share else signed(difference, 3)

    def limits(self, low: float, high: float) -> str:
        """An interval of differences: +33.0 to +45.6."""
        return f"{signed(100 * low, 1)} to {signed(100 * high, 1)}" if self.is_share else f"{signed(low, 3)} to {signed(high, 3)}"


ACCURACY = Metric("accuracy", True, False)
FILTERS = {"count": count, "percent": percent, "number": number, "size": size, "duration": duration}


def task_name(task: str) -> str:
    """What a general task, or one of lm-eval's own, is called."""
    return TASKS.get(task, f"{task.removeprefix('harness_')} (lm-eval)")
