"""Learnable prompts (figure 4): tokens p1 .. pN before each label, through the frozen text tower.

The tokens belong to whoever trains them and come in as an argument; the tower stays outside of the trained module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t4p.errors import ClipError
from t4p.models.clip import ClipTowers, mean_of_synonyms
from t4p.models.clip_package import SimpleTokenizer

PLACEHOLDER = "x"  # one token of CLIP's vocabulary; its embedding is replaced
RANDOM_STD = 0.02  # of fresh tokens, as CLIP initialises its own


class PromptedLabels:
    """The labels of a run, ready to be put behind any prompt tokens.

    Attributes:
        labels: K' names, each with its synonyms.
        initial_tokens: (N, width) float32, where learning starts.
    """

    def __init__(
        self, towers: ClipTowers, labels: Mapping[str, Sequence[str]], template: str, num_tokens: int | None
    ) -> None:
        """
        Args:
            labels: K' names, and the synonyms that stand for each behind the tokens.
            template: as for `ClipTowers.encode_labels`; what follows the label in it stays.
            num_tokens: N, drawn from torch's generator; None takes the words before the label in the template and
                their embeddings, so that learning starts from the features of the template itself.

        Raises:
            ClipError: the text tower is not read by CLIP's own tokenizer, a prompt does not fit its context, or the
                template has no words before the label.
        """
        tokenizer = towers.tokenizer
        if not isinstance(tokenizer, SimpleTokenizer):
            raise ClipError(
                f"{towers.name}: learnable prompts are known for CLIP's own tokenizer, and this text tower is read by "
                f"{type(tokenizer).__name__}; use a plain CLIP such as RN50 or ViT-B-16"
            )
        if template.count("{}") != 1:
            raise ClipError(f"prompt template is {template!r}; it must contain {{}} exactly once, where the label goes")
        before, after = template.split("{}")
        words = tokenizer.encode(before)
        if num_tokens is None and not words:
            raise ClipError(
                f"prompt template is {template!r}, without a word before the label to start from; set "
                "model.prompt_tokens to a number of tokens"
            )
        self.labels = tuple(labels)
        self._counts = [len(words) for words in labels.values()]
        self._towers = towers
        num = len(words) if num_tokens is None else num_tokens
        prompts = [f"{' '.join([PLACEHOLDER] * num)} {word}{after}" for words in labels.values() for word in words]
        for prompt in prompts:
            towers.check_prompt_fits(prompt)
        self._tokens = tokenizer(prompts)
        embedding = _token_embedding(towers)
        if num_tokens is None:
            self.initial_tokens = embedding.weight[torch.tensor(words)].detach().float().clone()
        else:
            self.initial_tokens = torch.randn(num, embedding.embedding_dim) * RANDOM_STD

    def embed(self, prompt_tokens: Tensor) -> Tensor:
        """Embed every label behind the tokens (the mean of its synonyms), in float32 whatever the caller's autocast.

        Args:
            prompt_tokens: (N, width), of `initial_tokens`' shape.

        Returns:
            (K', d) float32, unit-norm; gradients reach the tokens.
        """
        device = prompt_tokens.device
        with torch.autocast(device.type, enabled=False), _replaced_tokens(self._towers, prompt_tokens.float()):
            embeddings = self._towers.model.encode_text(self._tokens.to(device))
        return mean_of_synonyms(F.normalize(embeddings.float(), dim=-1), self._counts)


def _token_embedding(towers: ClipTowers) -> nn.Embedding:
    text = getattr(towers.model, "text", towers.model)  # CustomTextCLIP keeps its text tower in a part of its own
    return text.token_embedding


@contextmanager
def _replaced_tokens(towers: ClipTowers, prompt_tokens: Tensor) -> Iterator[None]:
    """Whatever else a text tower does with its tokens, it does with these: positions, mask, pooling, projection."""

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        num_texts, num_tokens = len(embedded), len(prompt_tokens)
        ours = prompt_tokens.to(embedded.dtype).expand(num_texts, -1, -1)
        return torch.cat([embedded[:, :1], ours, embedded[:, 1 + num_tokens :]], dim=1)  # after the start token

    handle = _token_embedding(towers).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
