"""A run folder with three tuned nodes of different devices and two FCNs, over a tiny random LM."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nvcim.crossbar import CrossbarConfig
from nvcim.data.users import UserSettings, generate_users
from nvcim.fleet.node import EdgeNode, learn
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.personaliser_files import save_personaliser
from nvcim.prompts.selection import SelectionSettings
from nvcim.prompts.tuning import TuningSettings
from nvcim.segmentation import FCNSettings, ResidualFCN, save_fcn

DEVICES = ("RRAM1", "FeFET2", "FeFET6")


def save_tiny_lm(folder: Path) -> None:
    """A random Llama with a byte-level tokenizer: it knows nothing, but it takes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=258, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=1024,
                eos_token_id=fast.eos_token_id,
                pad_token_id=fast.pad_token_id,
                bos_token_id=None,
            )
        )
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    save_tiny_lm(run / "lm")
    lm = LanguageModel.load(str(run / "lm"), "cpu")
    users = generate_users(len(DEVICES), UserSettings(domains=2, period=4), seed=5)
    settings = PromptSettings(
        buffer=8,
        selection=SelectionSettings(k=2),
        key_tokens=2,
        layer=1,
        tuning=TuningSettings(tokens=4, steps=2),
    )
    samples = [sample for user in users for sample in user.history]
    personaliser = Personaliser.fit(lm, samples, settings, seed=5)
    nodes = []
    for index, (user, device) in enumerate(zip(users, DEVICES, strict=True)):
        node = EdgeNode.new(f"node-{index}", CrossbarConfig(device=device), 5, personaliser)
        for sample in user.history:
            node.observe(sample)
        nodes.append(node)
    learn(nodes, personaliser)
    save_personaliser(personaliser, run)
    for node in nodes:
        node.save(run / "nodes" / node.node_id)
    for seed, name in enumerate(["inq-5", "float"]):
        save_fcn(ResidualFCN(FCNSettings(), seed), run / "fcn" / name)
    return run
