"""Makes one tiny random model, as the hub's cache holds one and as a GGUF file. Runs where PyTorch is installed.

``python make_models.py FOLDER`` writes ``FOLDER/hub``, for ``HF_HUB_CACHE``, and ``FOLDER/tiny.gguf``. The same numbers
every time: the seed is fixed. What the model writes is no language, but it is always ASCII, because a token that is no
whole character stops llama-cpp-python's stream from saying anything more.
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAME = "meterhouse/tiny-llama"
CONTEXT_TOKENS = 2_048
REVISION = "0" * 40
SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
TEXT = [
    "The quick brown fox jumps over the lazy dog. Hello, how are you today? I am a small model.",
    "Who pays for what? One, two, three: 0123456789. Is it not true that pack my box with five dozen jugs is short?",
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """Train one of some 150 tokens on two sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL))
    return tokenizer


def make_model(vocabulary_tokens: int) -> LlamaForCausalLM:
    """Make a Llama of two layers with random weights."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary_tokens,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )
    return LlamaForCausalLM(config)


def write_hub(folder: Path, tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    """Write it where the hub's client looks before it would ask the hub."""
    repository = folder / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(snapshot)
    model.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)


def write_gguf(path: Path, tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    """Write the same for llama.cpp."""
    config = model.config
    parts = json.loads(tokenizer.to_str())["model"]
    words = sorted(parts["vocab"], key=parts["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in SPECIAL else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([" ".join(pair) for pair in parts["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight",)), weights.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write both into the folder that was named."""
    folder = Path(sys.argv[1])
    tokenizer = make_tokenizer()
    model = make_model(tokenizer.get_vocab_size())
    write_hub(folder / "hub", tokenizer, model)
    write_gguf(folder / "tiny.gguf", tokenizer, model)


if __name__ == "__main__":
    main()
