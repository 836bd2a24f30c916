"""Decoders of the Llama family with their weights packed for the compiled kernel: the fast way to tune for them.

Known are Llama, Mistral and Qwen2 as transformers builds them: RMSNorm, rotary positions, grouped queries, SwiGLU,
biases of queries, keys and values. A model with anything else, on a GPU, or with weights too large to be held packed is
left to its own forward pass; so is one that gives another loss or gradient than the kernel on a probe. Weights held in
bfloat16 are packed as what they are worth in float32, so the kernel rounds less than such a model's own pass.
"""

import ctypes
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from nvcim.prompts.frozen_kernel import Decoder, KernelRow, Layer, Matrix, frozen_kernel
from nvcim.prompts.frozen_rows import FrozenRows, Gradients, PlainRows, Precision, Row
from nvcim.prompts.language_model import LanguageModel

KNOWN = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on the text's length."""
MOST_BYTES = 8 * 2**30
"""Packed weights, both ways, that are still held beside the model's own."""
MOST_POSITIONS = 4096
"""Positions in a row, for which angles are tabulated and activations held."""
CPU_ROWS = 16
"""Rows in one of a model's own passes on the CPU: the activations of more leave the cache, fewer leave it idle."""
PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference from the model's own loss and gradient on the probe, relative to their size, by the coarser of the
kernel's products and the model's own type."""
PROBE_TOKENS = 2
"""Virtual tokens of the probe."""
PROBE_QUESTION, PROBE_ANSWER = 9, 3
"""Random ids of the probe."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shortcuts:
    """What the kernel may leave out without changing a result; to be switched off to measure what each gains.

    Attributes:
        first_once: the first layer's queries, keys and values of the text are computed once per batch.
        last_few: the last layer's queries, output and MLP are computed at the answer's positions only.
    """

    first_once: bool = True
    last_few: bool = True


def frozen_rows(lm: LanguageModel, precision: Precision, longest: int) -> FrozenRows:
    """The fastest way to tune for this LM that gives right results for rows of up to `longest` positions."""
    if lm.device.type == "cpu":
        decoder = _packed(lm, precision)
        if decoder is not None and longest <= decoder.longest:
            return decoder
        return PlainRows(lm, precision, CPU_ROWS)
    return PlainRows(lm, precision)


_PACKED: "weakref.WeakKeyDictionary[Any, dict[Precision, tuple[int, FrozenDecoder | None]]]" = (
    weakref.WeakKeyDictionary()
)


def _packed(lm: LanguageModel, precision: Precision) -> "FrozenDecoder | None":
    """The LM packed and probed, kept as long as the model lives and its weights stay what they are."""
    state = hash(tuple((p.data_ptr(), p._version) for p in lm.model.parameters()))
    kept = _PACKED.setdefault(lm.model, {})
    if precision not in kept or kept[precision][0] != state:
        kept[precision] = (state, _probed(lm, precision))
    return kept[precision][1]


def _probed(lm: LanguageModel, precision: Precision) -> "FrozenDecoder | None":
    why = unknown(lm, precision)
    if why is not None:
        _log.info("model '%s' is tuned through its own forward pass: %s", lm.name, why)
        return None
    decoder = FrozenDecoder(lm, precision)
    generator = torch.Generator().manual_seed(0)
    size = lm.embedding_weight.shape[0]
    ids = torch.randint(size, (PROBE_QUESTION + PROBE_ANSWER,), generator=generator).tolist()
    row = Row(tuple(ids[:PROBE_QUESTION]), tuple(ids[PROBE_QUESTION:]), 1.0)
    tokens = lm.embedding_rms * torch.randn(1, PROBE_TOKENS, lm.hidden, generator=generator)
    (loss, gradient), (expected, right) = (
        rows.gradients([row], [0], 1, PROBE_TOKENS)(tokens) for rows in (decoder, PlainRows(lm))
    )
    tolerance = PROBE_TOLERANCE[precision if lm.dtype == torch.float32 else "bfloat16"]
    close = (gradient - right).norm() <= tolerance * right.norm() + 1e-9
    if close and (loss - expected).abs() <= tolerance * expected.abs():
        return decoder
    _log.warning("model '%s' is tuned through its own forward pass: the compiled kernel disagrees", lm.name)
    return None


def unknown(lm: LanguageModel, precision: Precision = "float32") -> str | None:
    """Why the kernel cannot stand for this LM, in a few words; None if it can."""
    kernel = frozen_kernel()
    if kernel is None:
        return "there is no compiled kernel"
    if precision == "bfloat16" and not kernel.nvcim_frozen_half():
        return "this CPU has no products in bfloat16"
    if type(lm.model) not in KNOWN:
        return f"{type(lm.model).__name__} is not one of {', '.join(kind.__name__ for kind in KNOWN)}"
    config = lm.model.config
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    rotation = lm.model.model.rotary_emb.rope_type
    if rotation not in FIXED_ROTATIONS:
        return f"rotary positions of kind {rotation}"
    if any(kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "layers with different attention"
    longest, probe = longest_row(lm), PROBE_TOKENS + PROBE_QUESTION + PROBE_ANSWER
    if longest < probe:
        return f"its {longest} positions are fewer than the probe's {probe}"
    for name, module in lm.model.named_modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            return f"{name} is a {type(module).__name__}"
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"{name} is a {type(module).__name__}"
        if (
            name.endswith(("o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"))
            and module.bias is not None
        ):
            return f"{name} has a bias"
    weights = sum(parameter.numel() for parameter in lm.model.parameters())
    if 2 * weights * _bytes(precision) > MOST_BYTES:
        return f"its {weights} weights would take more than {MOST_BYTES} bytes packed"
    return None


def longest_row(lm: LanguageModel) -> int:
    """Positions in a row that the kernel takes, virtual tokens included; beyond a sliding window the model computes
    something else."""
    window = getattr(lm.model.config, "sliding_window", None) or lm.context
    return min(lm.context, int(window), MOST_POSITIONS)


class FrozenDecoder:
    """A known decoder, packed.

    Args:
        lm: a model on the CPU for which `unknown` says None.
        precision: of the matrix products; sums, norms, attention and the loss are float32 either way.
        shortcuts: what is left out.

    Each row is computed on its own, so a job's loss and gradient are the same to the bit whatever else is in the batch
    and on however many of torch's threads it runs.

    It keeps the model's embeddings, not the model: `_PACKED` would otherwise hold every model that was ever tuned.
    """

    def __init__(
        self, lm: LanguageModel, precision: Precision = "float32", shortcuts: Shortcuts | None = None
    ) -> None:
        config, body = lm.model.config, lm.model.model
        self.longest = longest_row(lm)
        """Positions in a row."""
        self._name = lm.name
        self._hidden = lm.hidden
        self._embeddings: nn.Module = lm.model.get_input_embeddings()
        self._precision: Precision = precision
        kernel = frozen_kernel()
        assert kernel is not None, "a decoder is packed only where there is a kernel"
        self._panel = int(kernel.nvcim_frozen_panel())
        self._alive: list[Any] = []  # what the kernel's structures point to
        shortcuts = shortcuts or Shortcuts()
        attention = body.layers[0].self_attn
        size = int(attention.head_dim)
        with torch.no_grad():
            layers = (Layer * len(body.layers))(*(self._layer(layer) for layer in body.layers))
            head = lm.model.lm_head.weight.float() * body.norm.weight.float()
            angles = body.rotary_emb(torch.zeros(1, 1, 1), torch.arange(self.longest)[None])
        cosine, sine = (table[0].float().contiguous() for table in angles)
        self._alive += [layers, cosine, sine]
        self._decoder = Decoder(
            layers=ctypes.addressof(layers),
            head=self._matrix(head.T),
            head_back=self._matrix(head),
            cosine=cosine.data_ptr(),
            sine=sine.data_ptr(),
            count=len(body.layers),
            hidden=lm.hidden,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=size,
            inner=config.intermediate_size,
            epsilon=config.rms_norm_eps,
            scale=attention.scaling,
            half=precision == "bfloat16",
            first_once=shortcuts.first_once,
            last_few=shortcuts.last_few,
        )

    def gradients(self, rows: Sequence[Row], owners: Sequence[int], jobs: int, n: int) -> Gradients:
        """See `FrozenRows`.

        Raises:
            MemoryError: no room for a row's activations.
        """
        kernel = frozen_kernel()
        assert kernel is not None, "a decoder is packed only where there is a kernel"
        hidden = self._hidden
        prepared = [self._prepare(kernel, row, n) for row in rows]
        seen = torch.zeros(jobs, n, hidden)
        losses, slopes = torch.zeros(len(rows)), torch.zeros(len(rows), n, hidden)
        # Longest first: the threads then finish together.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        table = (KernelRow * len(rows))(
            *(
                KernelRow(
                    seen[owners[i]].data_ptr(),
                    *(part.data_ptr() for part in prepared[i]),
                    slopes[i].data_ptr(),
                    losses[i].data_ptr(),
                    n,
                    len(prepared[i][0]),
                    len(rows[i].answer),
                    rows[i].share,
                )
                for i in order
            )
        )
        owner = torch.tensor(list(owners))

        def gradients(tokens: Tensor) -> tuple[Tensor, Tensor]:
            seen.copy_(tokens.detach())
            self._run(kernel, table)
            # `prepared` is named here to live as long as the kernel's rows point into it.
            total = torch.zeros(jobs).index_add(0, owner, losses[: len(prepared)])
            return total, torch.zeros(jobs, n, hidden).index_add(0, owner, slopes)

        return gradients

    def _run(self, kernel: ctypes.CDLL, table: Any) -> None:
        if kernel.nvcim_frozen_rows(
            ctypes.byref(self._decoder), table, len(table), max(1, min(torch.get_num_threads(), len(table)))
        ):
            raise MemoryError(f"model '{self._name}': no memory for the activations of a sample")

    def _prepare(self, kernel: ctypes.CDLL, row: Row, n: int) -> tuple[Tensor, ...]:
        """Text embeddings, first-layer queries and keys with values, predicting places, labels; what never changes."""
        ids = torch.tensor((row.question + row.answer)[:-1])  # the last id predicts nothing that is learned
        text = self._embeddings(ids).detach().float().contiguous()
        model = self._decoder
        q = torch.empty(len(ids), model.heads * model.head_size)
        kv = torch.empty(len(ids), 2 * model.kv_heads * model.head_size)
        if kernel.nvcim_frozen_first(
            ctypes.byref(model), text.data_ptr(), len(ids), n, q.data_ptr(), kv.data_ptr()
        ):
            raise MemoryError(f"model '{self._name}': no memory to prepare a sample")
        places = torch.arange(n + len(row.question) - 1, n + len(ids))
        return text, q, kv, places, torch.tensor(row.answer)

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        before, after = layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()
        pair = (attention.k_proj, attention.v_proj)
        weights = {
            "q": attention.q_proj.weight.float() * before,
            "kv": torch.cat([one.weight.float() for one in pair]) * before,
            "o": attention.o_proj.weight.float(),
            "gate_up": torch.cat([mlp.gate_proj.weight.float(), mlp.up_proj.weight.float()]) * after,
            "down": mlp.down_proj.weight.float(),
        }
        biases = {"q": attention.q_proj.bias, "kv": None}
        if any(one.bias is not None for one in pair):
            biases["kv"] = torch.cat([one.bias for one in pair])
        forward = {name: self._matrix(weight.T, biases.get(name)) for name, weight in weights.items()}
        back = {f"{name}_back": self._matrix(weight) for name, weight in weights.items()}
        return Layer(**forward, **back)

    def _matrix(self, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """Pack weight [inputs, outputs]."""
        inputs, outputs = weight.shape
        panel = self._panel
        panels = -(-outputs // panel)
        padded = torch.zeros(inputs + inputs % 2, panels * panel)
        padded[:inputs, :outputs] = weight
        if self._precision == "bfloat16":
            pairs = padded.view(-1, 2, panels, panel)
            packed = pairs.permute(2, 0, 3, 1).to(torch.bfloat16).contiguous()
        else:
            packed = padded[:inputs].view(inputs, panels, panel).transpose(0, 1).contiguous()
        offset = None if bias is None else bias.detach().float().contiguous()
        self._alive += [packed, offset]
        return Matrix(packed.data_ptr(), None if offset is None else offset.data_ptr(), inputs, outputs)


def _bytes(precision: Precision) -> int:
    return 2 if precision == "bfloat16" else 4
