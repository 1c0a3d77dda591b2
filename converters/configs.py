"""Specs from the configuration files of a diffusers folder; what a spec cannot express is refused by name."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from tfsd.errors import TfsdWarning
from tfsd.files import read_json
from tfsd.h5 import CheckpointError
from tfsd.specs import CLIPSpec, ModelSpec, ScheduleSpec, SpecError, UNetSpec, VAESpec

# Fields that must be absent or have one of these values. Fields of later releases must be false, 0 or null.
UNET_FIXED = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_out_scale_factor": (1.0,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}
UNET_FREE = ("_diffusers_version", "_name_or_path", "addition_embed_type_num_heads", "dropout", "upcast_attention")
VAE_FIXED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "out_channels": (3,),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
VAE_FREE = ("_diffusers_version", "_name_or_path", "force_upcast", "sample_size")

SAMPLERS = {  # class -> (our sampler, its spacing where the file is silent)
    "PNDMScheduler": ("pndm", "leading"),
    "DDIMScheduler": ("ddim", "leading"),
    "DDPMScheduler": ("ddpm", "leading"),
    "LMSDiscreteScheduler": ("lms", "linspace"),
    "EulerDiscreteScheduler": ("euler", "linspace"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace"),
}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


class Config:
    """A configuration file that remembers which of its fields were read."""

    def __init__(self, path: Path):
        self.path = path
        self.values = read_json(path)
        self.read: set[str] = set()

    def get(self, name: str, kind: type | tuple[type, ...], default=None):
        """Returns a field; absent or null fields are `default`, and an error if that is None.

        Raises: `CheckpointError` naming the field.
        """
        self.read.add(name)
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.unsupported(name, " or ".join(k.__name__ for k in kinds))
        return value

    def numbers(self, name: str, count: int | None = None) -> tuple[int, ...]:
        """Returns a list of integers; with `count`, one integer stands for that many."""
        value = self.get(name, (int, list) if count else list)
        numbers = [value] * count if isinstance(value, int) else value
        if not numbers or any(type(n) is not int for n in numbers) or (count and len(numbers) != count):
            raise self.unsupported(name, f"a list of {count or 'some'} integers")
        return tuple(numbers)

    def one_of(self, name: str, allowed, default=None):
        """Returns a field that must have one of these values."""
        value = self.values.get(name)
        self.read.add(name)
        value = default if value is None else value
        if isinstance(value, (list, dict)) or value not in allowed:
            raise self.unsupported(name, " or ".join(map(repr, allowed)))
        return value

    def fixed(self, fields: Mapping[str, tuple], free: tuple[str, ...]):
        """Checks that all fields not read have the one value that our models have."""
        for name, allowed in fields.items():
            self.one_of(name, allowed, allowed[0])
        for name, value in self.values.items():
            given = any(value) if isinstance(value, list) else bool(value)
            if given and name not in self.read and name not in free:
                raise self.unsupported(name, "absent")

    def unsupported(self, name: str, expected: str) -> CheckpointError:
        """Returns the error about a field."""
        got = repr(self.values.get(name, "nothing"))
        return CheckpointError(f"{self.path}: {name} must be {expected}; got {got[:80]}. Such models are not supported.")


def model_spec(folder: Path) -> ModelSpec:
    """Returns the spec that the configuration files of a diffusers folder describe.

    Raises: `CheckpointError` naming the file and field that no spec can express.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is no diffusers folder: it has no model_index.json.")
    Config(folder / "model_index.json").one_of("_class_name", ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"))
    try:
        vae = _vae(Config(folder / "vae" / "config.json"))
        unet = Config(folder / "unet" / "config.json")
        denoiser, side = _unet(unet)
        text = _text(Config(folder / "text_encoder" / "config.json"), folder / "tokenizer")
        schedule, sampler = _schedule(Config(folder / "scheduler" / "scheduler_config.json"))
        if denoiser.context_width != text.width:
            raise unet.unsupported("cross_attention_dim", f"the text encoder's hidden_size, {text.width}")
        if denoiser.in_channels != vae.latent_channels:  # inpainting models take the mask and masked image, too
            raise unet.unsupported("in_channels", f"the VAE's latent_channels, {vae.latent_channels}")
        size = tuple(cells * vae.factor for cells in side)
        return ModelSpec(
            name=folder.name or "diffusers",
            text=text,
            denoiser=denoiser,
            vae=vae,
            schedule=schedule,
            default_sampler=sampler,
            default_size=size,
        )
    except SpecError as error:
        raise CheckpointError(f"{folder} describes no model of this kind: {error}") from error


def _unet(config: Config) -> tuple[UNetSpec, tuple[int, int]]:
    channels = config.numbers("block_out_channels")
    levels = len(channels)
    down, up = config.get("down_block_types", list), config.get("up_block_types", list)
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    if len(down) != levels or any(kind not in known for kind in map(str, down)):
        raise config.unsupported("down_block_types", f"{levels} of {', '.join(known)}")
    if up != [kind.replace("Down", "Up") for kind in reversed(down)]:
        raise config.unsupported("up_block_types", "the mirror image of down_block_types")
    heads = "attention_head_dim" if config.values.get("num_attention_heads") is None else "num_attention_heads"
    for name in ("attention_head_dim", "num_attention_heads"):  # by an old mistake, both mean a number of heads
        config.read.add(name)
    layers, depth = config.numbers("layers_per_block", levels), {1}
    if config.values.get("transformer_layers_per_block") is not None:
        depth = set(config.numbers("transformer_layers_per_block", levels))
    config.read.add("transformer_layers_per_block")
    for name, values in (("layers_per_block", set(layers)), ("transformer_layers_per_block", depth)):
        if len(values) != 1:
            raise config.unsupported(name, "the same on all levels")
    spec = UNetSpec(
        in_channels=config.get("in_channels", int),
        out_channels=config.get("out_channels", int),
        channels=channels,
        residuals=layers[0],
        attention=tuple(known[kind] for kind in down),
        heads=config.numbers(heads, levels),
        transformer_layers=depth.pop(),
        context_width=config.get("cross_attention_dim", int),
        linear_projection=config.get("use_linear_projection", bool, False),
        groups=config.get("norm_num_groups", int, 32),
        norm_epsilon=float(config.get("norm_eps", (int, float), 1e-5)),
    )
    side = config.numbers("sample_size", 2) if config.values.get("sample_size") is not None else (64, 64)
    config.read.add("sample_size")
    config.fixed(UNET_FIXED, UNET_FREE)
    return spec, side


def _vae(config: Config) -> VAESpec:
    channels = config.numbers("block_out_channels")
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(name, list) != [kind] * len(channels):
            raise config.unsupported(name, f"{len(channels)} times {kind}")
    spec = VAESpec(
        latent_channels=config.get("latent_channels", int),
        channels=channels,
        residuals=config.get("layers_per_block", int),
        groups=config.get("norm_num_groups", int, 32),
        scale=float(config.get("scaling_factor", (int, float), 0.18215)),
        shift=float(config.get("shift_factor", (int, float), 0.0)),
    )
    config.fixed(VAE_FIXED, VAE_FREE)
    return spec


def _text(config: Config, tokenizer: Path) -> CLIPSpec:
    config.one_of("model_type", ("clip_text_model",), "clip_text_model")
    vocabulary = config.get("vocab_size", int)
    start, end, pad = _special_tokens(config, tokenizer, vocabulary)
    return CLIPSpec(
        vocabulary=vocabulary,
        length=config.get("max_position_embeddings", int),
        width=config.get("hidden_size", int),
        layers=config.get("num_hidden_layers", int),
        heads=config.get("num_attention_heads", int),
        mlp_width=config.get("intermediate_size", int),
        activation=config.one_of("hidden_act", ("quick_gelu", "gelu")),
        epsilon=float(config.get("layer_norm_eps", (int, float), 1e-5)),
        start_token=start,
        end_token=end,
        pad_token=pad,
    )


def _special_tokens(config: Config, tokenizer: Path, vocabulary: int) -> tuple[int, int, int]:
    """Returns start, end and padding token; the tokenizer's files know best, published text encoders say 0, 2 and 1."""
    if (tokenizer / "vocab.json").is_file() and (tokenizer / "special_tokens_map.json").is_file():
        numbers, special = read_json(tokenizer / "vocab.json"), Config(tokenizer / "special_tokens_map.json")
        tokens = []
        for name in ("bos_token", "eos_token", "pad_token"):
            token = special.get(name, (str, dict))
            token = token.get("content") if isinstance(token, dict) else token
            if type(numbers.get(token)) is not int or not 0 <= numbers[token] < vocabulary:
                raise special.unsupported(name, "a token of vocab.json")
            tokens.append(numbers[token])
        return tuple(tokens)
    start, end, pad = (config.get(f"{name}_token_id", int) for name in ("bos", "eos", "pad"))
    if end != 2:
        return start, end, pad
    if config.values.get("hidden_act") == "quick_gelu":  # SD 1.x; 2.x pads with 0, other models with who knows what
        return vocabulary - 2, vocabulary - 1, vocabulary - 1
    raise CheckpointError(f"{tokenizer} is needed to know the padding token; it has no vocab.json or no special_tokens_map.json.")


def _schedule(config: Config) -> tuple[ScheduleSpec, str]:
    kind = config.get("_class_name", str)
    if kind not in SAMPLERS:
        warnings.warn(f"{config.path}: there is no sampler like {kind}; the default is pndm.", TfsdWarning, stacklevel=2)
    sampler, spacing = SAMPLERS.get(kind, ("pndm", "leading"))
    ddim = kind == "DDIMScheduler"  # its defaults differ from the others'
    config.one_of("clip_sample", (False,), ddim or kind == "DDPMScheduler")
    config.one_of("skip_prk_steps", (True,), kind != "PNDMScheduler")
    for name in ("thresholding", "rescale_betas_zero_snr", "trained_betas"):
        config.one_of(name, (False, None), False)
    spec = ScheduleSpec(
        betas=config.one_of("beta_schedule", ("scaled_linear", "linear")),
        beta_start=float(config.get("beta_start", (int, float))),
        beta_end=float(config.get("beta_end", (int, float))),
        train_steps=config.get("num_train_timesteps", int, 1000),
        prediction=PREDICTIONS[config.one_of("prediction_type", tuple(PREDICTIONS), "epsilon")],
        spacing=config.one_of("timestep_spacing", ("leading", "linspace", "trailing"), spacing),
        steps_offset=config.get("steps_offset", int, 0),
        final_alpha_one=config.one_of("set_alpha_to_one", (True, False), ddim),
    )
    return spec, sampler
