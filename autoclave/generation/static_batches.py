"""The model in this process as a generator: prompts sorted by length, padded on the left, decoded together.

On any device. The adapter stays hot: what is scored is W x + s B A x as it will be loaded, not weights that
were rounded by merging (docs/decisions/0030).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoclave.data.templates import prompt_text
from autoclave.evaluation.generate import end_of_sequence_ids, generate_ids
from autoclave.generation.answers import Answer, OnAnswer, Prompt
from autoclave.progress import ProgressCallback


class StaticBatches:
    name = "static-batches"

    def __init__(self, model: Any, tokenizer: Any, *, batch_tokens: int = 16384) -> None:
        """`batch_tokens` bounds prompt and answer tokens, padding included, that are decoded at a time:
        memory and speed, not answers."""
        self._model, self._tokenizer, self._batch_tokens = model, tokenizer, batch_tokens

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Answer]:
        texts = [prompt_text(self._tokenizer, prompt) for prompt in prompts]
        encoded: list[list[int]] = (
            self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        )
        answers: dict[int, Answer] = {}

        def keep(places: Sequence[int], generated: Sequence[list[int]]) -> None:
            for place, ids in zip(places, generated, strict=True):
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                answers[place] = Answer(text, len(ids), cut_off=len(ids) == max_new_tokens)
                if on_answer:
                    on_answer(place, answers[place])

        generate_ids(
            self._model,
            encoded,
            stop_ids=end_of_sequence_ids(self._model, self._tokenizer),
            max_new_tokens=max_new_tokens,
            batch_tokens=self._batch_tokens,
            on_progress=on_progress,
            on_batch=keep,
        )
        return [answers[place] for place in range(len(prompts))]
