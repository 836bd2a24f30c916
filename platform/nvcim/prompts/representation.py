"""What a text looks like to the prompt memory: [n, hidden] vectors from the frozen LM, pooled along the text.

The paper does not say which embedding it clusters and searches by. Here it is the hidden state of one layer of the
frozen LM (0: the input embeddings), scaled to the RMS of its token embeddings so that it can also start a token set:
a stored token set then resembles the texts it was tuned for, which is what the search relies on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nvcim.errors import ConfigError
from nvcim.prompts.batching import left_padded, length_groups, position_ids
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.model_checks import narrowing

TEXTS_PER_BATCH = 64


@torch.no_grad()
def represent(lm: LanguageModel, questions: Sequence[str], tokens: int, layer: int) -> Tensor:
    """Represent questions.

    Texts of similar length share a batch, so that little of it is padding. A text's vectors do not depend on the other
    texts but by the LM's rounding: of the embedded LM at most 1e-5 of their RMS in float32 and 0.1 in bfloat16
    (measured: 2e-6, 0.04); layer 0 is the same to the bit.

    Args:
        lm: the frozen model, in any floating point type.
        questions: texts as the user asked them; one longer than the context keeps its end.
        tokens: vectors per text (n).
        layer: hidden layer, 0 (input embeddings) to the model's depth. Where hidden states are wider than embeddings
            (OPT-350m), they go through the map by which the model itself narrows its last ones.

    Returns:
        [questions, n, hidden], float32: means over n equal stretches of each text.

    Raises:
        ConfigError: a layer that the LM does not have.
    """
    depth = int(lm.model.config.get_text_config(decoder=True).num_hidden_layers)
    if not 0 <= layer <= depth:
        raise ConfigError(f"field 'layer' is {layer}; model '{lm.name}' has layers 0 to {depth}")
    rows = [lm.question_ids(question)[-lm.context :] for question in questions]
    found = torch.empty(len(rows), tokens, lm.hidden, device=lm.device)
    for batch in length_groups([len(row) for row in rows], TEXTS_PER_BATCH, lm.most_padding):
        hidden = _hidden(lm, [rows[i] for i in batch], layer).float()
        for vectors, i in zip(hidden, batch, strict=True):
            pooled = functional.adaptive_avg_pool1d(vectors[-len(rows[i]) :].T[None], tokens)[0].T
            found[i] = pooled * lm.embedding_rms / pooled.square().mean().sqrt().clamp_min(1e-12)
    return found


def _hidden(lm: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Hidden states [rows, longest, hidden] of a layer, left-padded."""
    ids, mask = left_padded(lm, rows)
    if layer == 0:
        return lm.embed(ids)
    output = lm.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        output_hidden_states=True,
        logits_to_keep=1,
        use_cache=False,
    )
    hidden: Tensor = output.hidden_states[layer]
    return hidden if hidden.shape[-1] == lm.hidden else narrowing(lm.model)(hidden)
