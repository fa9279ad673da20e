"""Rows end to end in one sequence, kept apart by an attention mask, with the keys and values of those already read.

In: tokens and whose they are. Out: what a model's forward pass takes for them. Nothing is padding.
"""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ALL = -1  # the group or branch of tokens that every group or branch sees
BY_ROW = "luthier_by_row"  # transformers' name for `by_row`

Ids = list[int]


@dataclass
class Pack:
    """Tokens that lie in one sequence: a token sees those before it in its own group, in its own branch and in what `ALL` see."""

    ids: Ids = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    cache: DynamicCache = field(default_factory=DynamicCache)

    def add(self, ids: Ids, start: int, group: int, branch: int = ALL) -> int:
        """Appends tokens.

        Args:
            ids: the tokens.
            start: the position of the first in its own row.
            group: the row or question they belong to.
            branch: the choice they belong to.

        Returns:
            The index of the first.
        """
        first = len(self.ids)
        self.ids += ids
        self.position += range(start, start + len(ids))
        self.group += [group] * len(ids)
        self.branch += [branch] * len(ids)
        return first

    def take(self, other: "Pack", groups: set[int]) -> None:
        """Appends what another pack holds of some groups, without branches, with keys and values; all tokens of both have been read."""
        chosen = [
            index for index, owners in enumerate(zip(other.group, other.branch, strict=True)) if owners[0] in groups and owners[1] == ALL
        ]
        if not chosen:
            return
        mine, theirs = ((pack.ids, pack.position, pack.group, pack.branch) for pack in (self, other))
        for kept, values in zip(mine, theirs, strict=True):
            kept += [values[index] for index in chosen]
        for number, (key, value, *_) in enumerate(other.cache):
            places = torch.tensor(chosen, device=key.device)
            self.cache.update(key[:, :, places], value[:, :, places], number)

    def mask(self, new: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[1, 1, new, all] additive mask of the last `new` tokens over all: 0 where a token sees another, the lowest number elsewhere."""
        position, group, branch = (torch.tensor(values, device=device) for values in (self.position, self.group, self.branch))
        seen = position <= position[-new:, None]
        for owner in (group, branch):
            seen &= (owner == owner[-new:, None]) | (owner == ALL)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[None, None]

    def stretches(self, new: int, mask: torch.Tensor) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """The last `new` tokens by group.

        Args:
            new: how many tokens, at the end.
            mask: as `mask` gives it for them.

        Returns:
            Of each stretch of one group its place among the new tokens, the indices of the tokens it may see, and the mask of these alone.
        """
        owner, before, found = torch.tensor(self.group), len(self.ids) - new, []
        for group, stretch in groupby(range(new), lambda index: self.group[before + index]):
            first, *rest = stretch
            place = slice(first, first + 1 + len(rest))
            keys = ((owner == group) | (owner == ALL)).nonzero()[:, 0]
            found.append((place, keys, mask[:, :, place, keys]))
        return found


def by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    stretches: list[tuple[slice, torch.Tensor, torch.Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention one group at a time, for a CPU: over the whole of a pack most of the work would be masked away.

    Args:
        module: the attention layer.
        query: [1, heads, new, width].
        key: [1, key heads, all, width].
        value: the same.
        attention_mask: of the whole pack; not looked at where there are `stretches`.
        stretches: as `Pack.stretches` gives them; None in a pass that has no pack.
        **kwargs: handed on.

    Returns:
        [1, new, heads, width], and no attention weights.
    """
    if stretches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = [
        sdpa_attention_forward(module, query[:, :, place], key[:, :, keys], value[:, :, keys], mask, **kwargs)[0]
        for place, keys, mask in stretches
    ]
    return torch.cat(parts, dim=1), None


AttentionInterface.register(BY_ROW, by_row)
AttentionMaskInterface.register(BY_ROW, sdpa_mask)
