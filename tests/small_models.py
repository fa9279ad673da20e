"""Two real models trained in seconds: one that finds names by their context, one to which sentences of the same meaning are near.

In: a folder. Out: config.json, safetensors and tokenizer.json in it, as from the Hub; equal seeds, equal models.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
# {n}: a made-up name, {s}: a made-up street, {x}: a made-up word that is neither: only what stands around tells them apart
SENTENCES = [
    "my name is {n} and i need help",
    "please ask {n} about the invoice",
    "dear {n} , thank you for your letter",
    "{n} lives at {s} street 12 in town",
    "send it to {s} road 7 by monday",
    "the office of {n} is at {s} street 3",
    "the product {x} is sold out",
    "we use the library {x} for parsing",
    "what does the word {x} mean ?",
    "the order was sent on monday and paid by card",
    "install the package {x} and read the manual",
    "{n} and {n} wrote the report",
]
STEPS = 500
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
# words of one meaning in a line
MEANINGS = [
    ("buy", "purchase"), ("car", "automobile"), ("big", "large"), ("fast", "quick"), ("begin", "start"), ("end", "finish"),
    ("house", "home"), ("doctor", "physician"), ("happy", "glad"), ("sad", "unhappy"), ("error", "mistake"), ("answer", "reply"),
    ("road", "street"), ("child", "kid"), ("money", "cash"), ("shop", "store"), ("help", "assist"), ("choose", "select"),
    ("smart", "clever"), ("story", "tale"), ("gift", "present"), ("job", "work"), ("rich", "wealthy"), ("repair", "mend"),
]  # fmt: skip


def made_up(rng: random.Random, words: int = 1) -> str:
    """A word of three or four syllables, or several."""
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.choice([3, 4]))) for _ in range(words))


def sentence(rng: random.Random) -> tuple[list[str], list[str]]:
    """The words of a sentence and their labels."""
    words: list[str] = []
    labels: list[str] = []
    for word in rng.choice(SENTENCES).split():
        made = made_up(rng, rng.choice([1, 2]) if word in ("{n}", "{s}") else 1).split() if word in ("{n}", "{s}", "{x}") else [word]
        kind = {"{n}": "PER", "{s}": "LOC"}.get(word)
        words += made
        labels += [f"{'I' if number else 'B'}-{kind}" if kind else "O" for number in range(len(made))]
    return words, labels


def text(rng: random.Random, sentences: int) -> tuple[list[str], list[str]]:
    """The words of several sentences and their labels."""
    made = [sentence(rng) for _ in range(sentences)]
    return [word for words, _ in made for word in [*words, "."]], [label for _, labels in made for label in [*labels, "O"]]


def meaning(rng: random.Random, concepts: list[int]) -> str:
    """The concepts in another order, each by one of its words."""
    return " ".join(rng.choice(MEANINGS[concept]) for concept in rng.sample(concepts, len(concepts)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small matrices are slower in two threads than in one, and much slower where the cores are busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def entity_model(folder: Path, seed: int = 0) -> Path:
    """A BERT of two layers and 64 positions that tells names and streets by their context."""
    import torch
    from transformers import BertForTokenClassification

    rng = random.Random(seed)
    tokenizer = word_pieces([word for line in SENTENCES for word in line.split() if "{" not in word])
    torch.manual_seed(seed)
    config = _config(len(tokenizer), num_labels=len(LABELS))
    config.id2label, config.label2id = dict(enumerate(LABELS)), {name: number for number, name in enumerate(LABELS)}
    model = BertForTokenClassification(config)
    with torch.no_grad():  # sinusoids (Vaswani et al. 2017): who stands beside whom is then learnt in a fifth of the steps
        angles = torch.arange(64)[:, None] / 10 ** (torch.arange(32)[None] / 16)
        model.bert.embeddings.position_embeddings.weight.copy_(0.2 * torch.cat([angles.sin(), angles.cos()], 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    for _ in range(STEPS):
        batch = [text(rng, rng.randint(1, 5)) for _ in range(12)]
        given = tokenizer([words for words, _ in batch], is_split_into_words=True, padding=True, truncation=True, return_tensors="pt")
        target = torch.full_like(given["input_ids"], -100)
        for row, (_, labels) in enumerate(batch):
            for place, word in enumerate(given.word_ids(row)):
                if word is not None:
                    target[row, place] = LABELS.index(labels[word])
        model(**given, labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return _saved(folder, model, tokenizer)


@_one_thread()
def embedding_model(folder: Path, seed: int = 0) -> Path:
    """A BERT of two layers whose mean-pooled vectors are near for sentences of the same concepts (InfoNCE over pairs)."""
    import torch
    from transformers import BertModel

    rng = random.Random(seed)
    tokenizer = word_pieces([word for words in MEANINGS for word in words])
    torch.manual_seed(seed)
    model = BertModel(_config(len(tokenizer)), add_pooling_layer=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(120):
        concepts = [rng.sample(range(len(MEANINGS)), rng.randint(5, 8)) for _ in range(32)]
        vectors = []
        for _ in range(2):
            given = tokenizer([meaning(rng, chosen) for chosen in concepts], padding=True, return_tensors="pt")
            mask = given["attention_mask"][:, :, None]
            vectors.append(torch.nn.functional.normalize((model(**given).last_hidden_state * mask).sum(1), dim=-1))
        torch.nn.functional.cross_entropy(vectors[0] @ vectors[1].T / 0.1, torch.arange(32)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return _saved(folder, model, tokenizer)


def word_pieces(words: list[str]) -> Any:
    """WordPiece over letters, syllables and the given words: a word it has not seen falls into pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?:;!'<>_-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({*letters, *SYLLABLES, *words})]
    pieces += [f"##{piece}" for piece in sorted({*letters, *SYLLABLES})]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    )


def _config(vocabulary: int, **more: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **more,
    )


def _saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
