"""A very small Llama with random weights, to run a real engine without a download or a GPU.

Its answers are meaningless, but readable; they differ from prompt to prompt, and contain characters of two to
four bytes that are split over as many tokens. It never ends an answer by itself. The same seed gives the same
model, so an answer at temperature 0 is always the same.
"""

# torch and transformers are not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from torch.nn import ModuleList
    from transformers import LlamaConfig

WORDS: Final = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if will up "
    "other about out many then them these so some her would make like him into time has look two more write "
    "go see number no way could people my than first water been call who oil its now find long down day did "
    "get come made may part"
)
"""The words of the vocabulary, each of which is one token."""

SPLIT_CHARACTERS: Final = ("é", "€", "🚀")
"""Characters of two, three and four bytes, each byte a token. The model always completes one it begins.

No byte follows two different ones, so the last byte alone says which is next.
"""

CHAT_TEMPLATE: Final = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% if greeting %}{{ greeting }} {% endif %}"
    "{% endif %}"
)
"""ChatML, with one switch of its own: ``chat_template_kwargs={"greeting": "hi"}`` begins the answer."""

_PADDING: Final = "<|endoftext|>"
_SPECIAL: Final = (_PADDING, "<|im_start|>", "<|im_end|>")
_MARKUP: Final = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_END: Final = "<|im_end|>"


def build_tiny_model(path: Path, *, max_model_len: int = 2048, seed: int = 0) -> Path:
    """Write the model and its tokenizer into ``path`` as a Hugging Face folder, about 2 MB, and return it.

    Needs ``torch`` and ``transformers``, which come with vLLM. Takes well under a second after import.
    """
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_written(tokenizer, path, max_model_len=max_model_len)).to(torch.float32)
    with torch.no_grad():
        _choose_what_it_says(
            tokenizer, model.model.layers, model.model.embed_tokens.weight, model.lm_head.weight
        )
    model.save_pretrained(path)
    return path


def build_tiny_reranker(path: Path, *, labels: int = 1, max_model_len: int = 2048, seed: int = 0) -> Path:
    """Write a classifier of the same size and vocabulary to ``path``, and return that.

    With one label it is a cross-encoder, which scores the relevance of two texts from 0 to 1.
    """
    import torch
    from transformers import LlamaForSequenceClassification

    config = _written(_tokenizer(), path, max_model_len=max_model_len)
    config.num_labels = labels
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config).to(torch.float32)
    with torch.no_grad():
        # Otherwise most scores would be so near to 0 or 1 that they are all the same.
        model.score.weight *= 0.3
    model.save_pretrained(path)
    return path


def _written(tokenizer: Tokenizer, path: Path, *, max_model_len: int) -> LlamaConfig:
    """Write the tokenizer, and return what the model is made of."""
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PADDING,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_model_len,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(path)
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,  # the smallest that vLLM's attention on CPU takes
        max_position_embeddings=max_model_len,
        # Far above the usual 0.02, so that attention to the prompt weighs as much as the last token.
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.token_to_id(_END),
        bos_token_id=None,
        pad_token_id=tokenizer.token_to_id(_PADDING),
    )


def _tokenizer() -> Tokenizer:
    """Make a byte-level BPE tokenizer that knows ``WORDS``, and so can spell anything else."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {WORDS}"], trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _MARKUP])
    return tokenizer


def _choose_what_it_says(tokenizer: Tokenizer, layers: ModuleList, embedding: Tensor, head: Tensor) -> None:
    """Edit the weights so that the model generates only whole words and whole characters.

    A token whose row of the output matrix is zero has the logit zero and is never the best. This disables
    everything but words and the first byte of each split character. The next bytes of a character get their
    own dimension: the byte before sets it, the byte after reads it, and no layer in between writes it.
    """
    spoken = [tokenizer.token_to_id(f"Ġ{word}") for word in dict.fromkeys(WORDS.split())]
    byte_tokens = [tokenizer.encode(character).ids for character in SPLIT_CHARACTERS]
    silent = set(range(head.shape[0])) - set(spoken) - {first for first, *_ in byte_tokens}
    head[sorted(silent)] = 0.0
    links = [link for ids in byte_tokens for link in pairwise(ids)]
    for dimension, (before, after) in enumerate(links):
        embedding[:, dimension] = 0.0
        head[:, dimension] = 0.0
        for layer in layers:
            layer.self_attn.o_proj.weight[dimension] = 0.0
            layer.mlp.down_proj.weight[dimension] = 0.0
        embedding[before, dimension] = 10.0
        head[after, dimension] = 200.0
