"""Reads specs from the configuration files of a diffusers folder; what a spec cannot express is refused by name.

Source: the constructors of diffusers 0.42.1, which say what an absent field means, and what `StableDiffusionPipeline` repairs
of outdated files.
"""

import warnings
from pathlib import Path

from tfsd.converters.importers.config_file import Config, Tell, version_of
from tfsd.converters.importers.scheduler_config import schedule_of
from tfsd.converters.importers.text_config import text_spec
from tfsd.errors import CheckpointError, TfsdWarning
from tfsd.specs import ModelSpec, SpecError, UNetSpec, VAESpec

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
COMPONENTS = {  # component in model_index.json -> the classes that give the same images as ours
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Without effect on images: the extractor belongs to the safety checker, the image encoder to image prompts, which tfsd does
# not have.
INDEX_FREE = ("feature_extractor", "image_encoder", "requires_safety_checker")

# Fields that must have one of these values; an absent field has the first.
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
UNET_OFF = (
    "addition_embed_type",
    "center_input_sample",
    "class_embed_type",
    "class_embeddings_concat",
    "cross_attention_norm",
    "dual_cross_attention",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "mid_block_only_cross_attention",
    "num_attention_heads",  # diffusers refuses it too
    "num_class_embeds",
    "only_cross_attention",
    "resnet_skip_time_act",
    "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
    "timestep_post_act",
)
# Dropout is for training; the others belong to an `addition_embed_type` or `class_embed_type`.
UNET_FREE = (
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "dropout",
    "projection_class_embeddings_input_dim",
)

VAE_FIXED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "out_channels": (3,),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
# `StableDiffusionPipeline` applies none of these, so it is unknown which images a folder with one of them should give.
VAE_OFF = ("latents_mean", "latents_std", "shift_factor")
# Stable Diffusion's pipelines never read `force_upcast`, which asks for a VAE in float32: here it always runs in float32.
# `sample_size` is for tiling.
VAE_FREE = ("force_upcast", "sample_size")


def warn(message: str):
    """Shows what a configuration's reader tells as a Python warning."""
    warnings.warn(message, TfsdWarning, stacklevel=2)


def model_spec(folder: Path, *, sampler: str | None = None, tell: Tell = warn) -> ModelSpec:
    """Returns the spec that the configuration files of a diffusers folder describe.

    `sampler`, a key of `SAMPLERS`, replaces the scheduler's. `tell` is called for each field that is repaired or
    ignored, as in diffusers.
    Raises: `CheckpointError` naming the file and field that no spec can express.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is not a diffusers folder: it has no model_index.json.")
    scheduler = _index(Config(folder / "model_index.json", tell))
    try:
        vae = _vae(Config(folder / "vae" / "config.json", tell))
        unet = Config(folder / "unet" / "config.json", tell)
        denoiser, side = _unet(unet)
        text = text_spec(Config(folder / "text_encoder" / "config.json", tell), folder / "tokenizer")
        config = Config(folder / "scheduler" / "scheduler_config.json", tell)
        schedule, sampler = schedule_of(config, scheduler or config.get("_class_name", str), sampler)
        if denoiser.context_width != text.width:
            raise unet.unsupported("cross_attention_dim", f"the text encoder's hidden_size, {text.width}")
        if denoiser.in_channels != vae.latent_channels:  # inpainting models take the mask and masked image, too
            raise unet.unsupported("in_channels", f"the VAE's latent_channels, {vae.latent_channels}")
        if denoiser.out_channels != vae.latent_channels:  # a learned variance would double them
            raise unet.unsupported("out_channels", f"the VAE's latent_channels, {vae.latent_channels}")
        height, width = (cells * vae.factor for cells in side)
        return ModelSpec(
            name=folder.name or "diffusers",
            text=(text,),
            denoiser=denoiser,
            vae=vae,
            schedule=schedule,
            default_sampler=sampler,
            default_size=(height, width),
        )
    except SpecError as error:
        raise CheckpointError(f"{folder} describes no model of this kind: {error}") from error


def _index(config: Config) -> str | None:
    """Checks model_index.json, and returns the class of the scheduler that it names, which diffusers uses."""
    config.one_of("_class_name", PIPELINES)
    classes, names = {}, (*COMPONENTS, "scheduler", "safety_checker")
    config.read.update(names)
    for name in names:
        entry = [None, None] if config.values.get(name) is None else config.get(name, list)
        if len(entry) != 2 or not all(part is None or isinstance(part, str) for part in entry):
            raise config.unsupported(name, "a library and a class")
        classes[name] = entry[1]
    for name, allowed in COMPONENTS.items():
        if classes[name] is not None and classes[name] not in allowed:
            raise config.unsupported(name, f"of the class {' or '.join(allowed)}")
    if classes["safety_checker"] is not None:
        config.tell(f"{config.path}: safety_checker is left out; images are not checked.")
    config.ignore_rest("a Stable Diffusion pipeline", INDEX_FREE)
    return classes["scheduler"]


def _unet(config: Config) -> tuple[UNetSpec, tuple[int, int]]:
    channels = config.numbers("block_out_channels", default=[320, 640, 1280, 1280])
    levels = len(channels)
    down = config.get("down_block_types", list, ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    if len(down) != levels or any(kind not in known for kind in map(str, down)):
        raise config.unsupported("down_block_types", f"{levels} of {', '.join(known)}")
    up = config.get("up_block_types", list, ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    if up != [kind.replace("Down", "Up") for kind in reversed(down)]:
        raise config.unsupported("up_block_types", "the mirror image of down_block_types")
    spec = UNetSpec(
        in_channels=config.get("in_channels", int, 4),
        out_channels=config.get("out_channels", int, 4),
        channels=channels,
        residuals=config.same("layers_per_block", levels, 2),
        attention=tuple(known[kind] for kind in down),
        heads=config.numbers("attention_head_dim", levels, 8),  # by an old mistake, this is the number of heads
        transformer_layers=config.same("transformer_layers_per_block", levels, 1),
        context_width=config.same("cross_attention_dim", levels, 1280),
        linear_projection=config.flag("use_linear_projection", False),
        groups=config.get("norm_num_groups", int, 32),
        norm_epsilon=config.number("norm_eps", 1e-5),
        upcast_attention=config.flag("upcast_attention", False),
    )
    width = 4 * channels[0]
    config.fixed(UNET_FIXED | {"time_embedding_dim": (None, 0, width)})
    config.off(UNET_OFF)
    side = _sample_size(config)
    config.ignore_rest("UNet2DConditionModel", UNET_FREE)
    return spec, side


def _sample_size(config: Config) -> tuple[int, int]:
    """Returns the default height and width in latents: 64 if the file gives none, or if an old release wrote a smaller one."""
    if config.values.get("sample_size") is None:
        config.read.add("sample_size")
        return 64, 64
    (height, width), version = config.numbers("sample_size", 2), version_of(config.values)
    if isinstance(config.values["sample_size"], int) and height < 64 and version is not None and version < (0, 9):
        config.tell(f"{config.path}: sample_size is {height}, which is outdated; it is taken as 64, as diffusers does.")
        return 64, 64
    return height, width


def _vae(config: Config) -> VAESpec:
    channels = config.numbers("block_out_channels", default=[64])
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(name, list, [kind]) != [kind] * len(channels):
            raise config.unsupported(name, f"{len(channels)} times {kind}")
    spec = VAESpec(
        latent_channels=config.get("latent_channels", int, 4),
        channels=channels,
        residuals=config.get("layers_per_block", int, 1),
        groups=config.get("norm_num_groups", int, 32),
        scale=config.number("scaling_factor", 0.18215),
    )
    config.fixed(VAE_FIXED)
    config.off(VAE_OFF)
    config.ignore_rest("AutoencoderKL", VAE_FREE)
    return spec
