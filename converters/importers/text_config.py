"""Reads the spec of a diffusers folder's text encoder from its configuration and the files of its tokenizer.

Source: `CLIPTextConfig` of transformers 5.23.0, whose defaults absent fields have.
"""

from pathlib import Path

from tfsd.converters.importers.config_file import Config
from tfsd.errors import CheckpointError
from tfsd.specs import CLIPSpec
from tfsd.storage.files import read_json

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
TEXT_OFF = ("use_attention_mask",)  # padding would be masked
# Dropout and initializers are for training, the projection for `CLIPTextModelWithProjection`; the rest says how transformers
# answers or what wrote the file.
TEXT_FREE = (
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "projection_dim"),
    *("architectures", "dtype", "output_attentions", "output_hidden_states", "return_dict", "torch_dtype"),
    *("transformers_version", "use_cache"),
)


def text_spec(config: Config, tokenizer: Path) -> CLIPSpec:
    """Returns the spec of a text encoder from its configuration and the folder of its tokenizer.

    Raises: `CheckpointError` naming the field that no spec can express.
    """
    config.one_of("model_type", ("clip_text_model",), "clip_text_model")
    vocabulary = config.get("vocab_size", int, 49408)
    start, end, pad = _special_tokens(config, tokenizer, vocabulary)
    spec = CLIPSpec(
        vocabulary=vocabulary,
        length=_length(config, tokenizer),
        width=config.get("hidden_size", int, 512),
        layers=config.get("num_hidden_layers", int, 12),
        heads=config.get("num_attention_heads", int, 8),
        mlp_width=config.get("intermediate_size", int, 2048),
        activation=ACTIVATIONS[config.one_of("hidden_act", tuple(ACTIVATIONS), "quick_gelu")],
        epsilon=config.number("layer_norm_eps", 1e-5),
        start_token=start,
        end_token=end,
        pad_token=pad,
    )
    config.off(TEXT_OFF)
    config.ignore_rest("CLIPTextModel", TEXT_FREE)
    return spec


def _length(config: Config, tokenizer: Path) -> int:
    """Returns the length of a prompt in tokens: the number of positions, which the tokenizer's length must not fall below."""
    length = config.get("max_position_embeddings", int, 77)
    if (tokenizer / "tokenizer_config.json").is_file():
        own = Config(tokenizer / "tokenizer_config.json", config.tell)
        if own.number("model_max_length", length) < length:
            raise own.unsupported("model_max_length", f"the text encoder's max_position_embeddings, {length}")
    return length


def _special_tokens(config: Config, tokenizer: Path, vocabulary: int) -> tuple[int, int, int]:
    """Returns start, end and padding token, from the tokenizer's files if possible."""
    names = ("bos_token", "eos_token", "pad_token")
    sources = [tokenizer / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    source = next((path for path in sources if path.is_file() and set(names) <= set(read_json(path))), None)
    numbers = _numbers_of_tokens(tokenizer)
    if source is not None and numbers is not None:
        config.read.update(f"{name}_id" for name in names)
        special, tokens = Config(source, config.tell), []
        for name in names:
            token = special.get(name, (str, dict))
            token = token.get("content") if isinstance(token, dict) else token
            number = numbers.get(token) if isinstance(token, str) else None
            if type(number) is not int or not 0 <= number < vocabulary:
                raise special.unsupported(name, "a token of the tokenizer's vocabulary")
            tokens.append(number)
        start, end, pad = tokens
        return start, end, pad
    start, end, pad = (config.get(f"{name}_id", int, default) for name, default in zip(names, (49406, 49407, 1)))
    if end != 2 and pad != 1:
        return start, end, pad
    # Published text encoders say 0, 2 and 1, or leave the last to its default of 1; the tokenizer has other numbers.
    if config.values.get("hidden_act", "quick_gelu") != "quick_gelu":  # SD 1.x; 2.x pads with 0, others are unknown
        raise CheckpointError(f"{tokenizer} is needed to know the padding token; it has no vocabulary or no special tokens.")
    own = vocabulary - 2, vocabulary - 1, vocabulary - 1
    if (start, end, pad) != own:
        fields = ", ".join(f"{name}_id" for name in names)
        config.tell(f"{config.path}: {fields} are {start}, {end}, {pad}, which no tokenizer has; they are taken as {own}.")
    return own


def _numbers_of_tokens(tokenizer: Path) -> dict[str, int] | None:
    """Returns the number of each token, from the file of slow tokenizers or that of fast ones; None without either."""
    if (tokenizer / "vocab.json").is_file():
        return read_json(tokenizer / "vocab.json")
    if not (tokenizer / "tokenizer.json").is_file():
        return None
    values = read_json(tokenizer / "tokenizer.json")
    model, added = values.get("model"), values.get("added_tokens")
    numbers = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(numbers, dict) or not isinstance(added, list):
        raise CheckpointError(f"{tokenizer / 'tokenizer.json'} is damaged: it has no vocabulary.")
    return numbers | {token.get("content"): token.get("id") for token in added if isinstance(token, dict)}
