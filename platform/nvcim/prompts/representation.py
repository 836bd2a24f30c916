"""What a text looks like to the prompt memory: [n, hidden] vectors from the frozen LM, pooled along the text.

The paper does not say which embedding it clusters and searches by. Here it is the hidden state of one layer of the
frozen LM (0: the input embeddings), scaled to the RMS of its token embeddings so that it can also start a token set:
a stored token set then resembles the texts it was tuned for, which is what the search relies on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nvcim.prompts.batching import left_padded, position_ids
from nvcim.prompts.language_model import LanguageModel

TEXTS_PER_BATCH = 64


@torch.no_grad()
def represent(lm: LanguageModel, questions: Sequence[str], tokens: int, layer: int) -> Tensor:
    """Represent questions.

    Args:
        lm: the frozen model.
        questions: texts as the user asked them; one longer than the context keeps its end.
        tokens: vectors per text (n).
        layer: hidden layer, 0 (input embeddings) to the model's depth.

    Returns:
        [questions, n, hidden]: means over n equal stretches of each text.
    """
    parts = []
    for start in range(0, len(questions), TEXTS_PER_BATCH):
        rows = [lm.question_ids(q)[-lm.context :] for q in questions[start : start + TEXTS_PER_BATCH]]
        ids, mask = left_padded(lm, rows)
        if layer == 0:
            hidden = lm.embed(ids)
        else:
            output = lm.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                output_hidden_states=True,
                logits_to_keep=1,
                use_cache=False,
            )
            hidden = output.hidden_states[layer]
        for vectors, row in zip(hidden, rows, strict=True):
            pooled = functional.adaptive_avg_pool1d(vectors[-len(row) :].T[None], tokens)[0].T
            parts.append(pooled * lm.embedding_rms / pooled.square().mean().sqrt().clamp_min(1e-12))
    return torch.stack(parts)
