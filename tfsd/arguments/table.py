"""The table of request arguments: one row per argument, from which every interface is made.

A row is a field of the TypedDicts below. Its type is the argument's type in Python, and its `Argument` holds everything else.
Signatures, checks, graph inputs, columns on the wire, command-line options, `tfsd show` and recipes are derived from
`ARGUMENTS`; code that uses an argument reads it by its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from tfsd.samplers.names import ALIASES, COMMUNITY_NAMES
from tfsd.specs.limits import INT64, MAX_INDEX, MAX_SCALE, MAX_SIDE, MAX_STEPS

PYTHON, GRAPH, DEVICE = "python", "graph", "device"  # where an argument applies: the Python API, SavedModels, device bundles
TEXT_TO_IMAGE, IMAGE_TO_IMAGE = "text_to_image", "image_to_image"  # tasks, by the functions that do them
Texts = str | Sequence[str]
Seeds = int | Sequence[int] | None
TRUNCATED = ("truncated_tokens", "truncated_negative_tokens")  # outputs that count tokens cut off the two prompts


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a keyword argument is for, and its value if it is left out."""

    help: str
    default: Any = None

    @property
    def full_help(self) -> str:
        """The help for documentation."""
        return self.help


@dataclass(frozen=True, kw_only=True)
class Argument(Option):
    """A row of the table: everything about an argument except for its name and its type in Python.

    `default` None means the model's own value, `of_model`, or, without one, that the place that uses it chooses.
    """

    kind: str  # a key of `tfsd.arguments.checks.KINDS`: text, whole, real, choice, switch, image
    column: str = ""  # the type of its graph input, such as "int32"; empty if it has none
    targets: tuple[str, ...] = (PYTHON, GRAPH, DEVICE)
    tasks: tuple[str, ...] = (TEXT_TO_IMAGE, IMAGE_TO_IMAGE)
    per_image: bool = False  # each image of a Python call may have its own; in graphs each row has its own of everything
    required: bool = False
    low: int = 0  # the limits of numbers
    high: int = 0
    hint: str = ""  # a sentence for those who are out of these limits
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)  # other name -> choice; upper and lower case are the same
    of_model: Callable[[Any], Any] | None = None  # the model's own value, of its spec
    graph_default: Any = None  # of a graph input, where `default` and `of_model` have none
    in_recipe: bool = True
    flags: tuple[str, ...] = ()  # options of the command line; the first long one is the usual one
    flag_default: str = ""  # what the help page says of the default, where it is neither a value nor the model's
    metavar: str | None = None
    other_flags: tuple[str, ...] = ()  # what other programs call the option; only named in messages
    other_names: Mapping[str, str] = field(default_factory=dict)  # program -> its name: kerascv, compvis, diffusers, webui

    @property
    def full_help(self) -> str:
        """The help with the names that can be chosen."""
        return f"{self.help}: {', '.join(self.choices)}" if self.aliases else self.help

    @property
    def flag(self) -> str:
        """The usual option of the command line."""
        return next(flag for flag in self.flags if flag.startswith("--"))

    @property
    def destination(self) -> str:
        """The name of the option's value among parsed arguments."""
        return self.flag[2:].replace("-", "_")


_SIDE = Argument(kind="whole", column="int32", low=8, high=MAX_SIDE, help="in pixels, a multiple of 8")


class PromptArguments(TypedDict, total=False):
    """What is given by position, beside the batch size."""

    prompt: Annotated[
        Texts,
        Argument(kind="text", column="string", per_image=True, required=True, help="a text, or a list of texts"),
    ]
    seed: Annotated[
        Seeds,
        Argument(
            kind="whole",
            column="int64",
            per_image=True,
            low=INT64[0],
            high=INT64[1],
            graph_default=0,
            flags=("-s", "--seed"),
            flag_default="drawn, see `tfsd show`",
            other_flags=("--random-seed",),
            other_names={"webui": "Seed"},
            help="same prompt, seed and index: same image",
        ),
    ]


class GuidanceArguments(TypedDict, total=False):
    """What KerasCV's `generate_image` takes by position."""

    negative_prompt: Annotated[
        str | Sequence[str] | None,
        Argument(
            kind="text",
            column="string",
            per_image=True,
            default="",
            flags=("--negative", "--negative-prompt"),
            metavar="TEXT",
            other_flags=("--neg", "--negative_prompt"),
            help="what not to show",
        ),
    ]
    guidance_scale: Annotated[
        float | Sequence[float] | None,
        Argument(
            kind="real",
            column="float32",
            per_image=True,
            low=0,
            high=MAX_SCALE,
            hint="Values from 3 to 10 are usual.",
            of_model=lambda spec: spec.default_guidance,
            flags=("--scale", "--guidance", "--guidance-scale"),
            other_flags=("--cfg", "--cfg-scale", "--guidance_scale"),
            other_names={"kerascv": "unconditional_guidance_scale", "compvis": "scale", "webui": "CFG scale"},
            help="how closely the prompt is followed",
        ),
    ]
    num_steps: Annotated[
        int | None,
        Argument(
            kind="whole",
            column="int32",
            low=1,
            high=MAX_STEPS,
            of_model=lambda spec: spec.default_steps,
            flags=("--steps", "--num-steps"),
            other_flags=("--num-inference-steps", "--num_inference_steps", "--iterations"),
            other_names={"compvis": "ddim_steps", "diffusers": "num_inference_steps", "webui": "Steps"},
            help="steps of the sampler",
        ),
    ]


class ImageArguments(TypedDict, total=False):
    """What is given by name alone."""

    index: Annotated[
        int,
        Argument(
            kind="whole",
            column="int32",
            default=0,
            low=0,
            high=MAX_INDEX,
            flags=("--index",),
            help="number of the first image of the seed",
        ),
    ]
    sampler: Annotated[
        str | None,
        Argument(
            kind="choice",
            column="string",
            choices=tuple(COMMUNITY_NAMES),
            aliases=ALIASES,
            of_model=lambda spec: spec.default_sampler,
            flags=("--sampler",),
            other_flags=("--scheduler", "--sampling-method", "--solver"),
            other_names={"diffusers": "scheduler", "webui": "Sampler"},
            help="the algorithm",
        ),
    ]
    height: Annotated[
        int | None,
        replace(
            _SIDE,
            of_model=lambda spec: spec.default_size[0],
            flags=("--height",),
            other_flags=("-H",),
            other_names={"kerascv": "img_height", "compvis": "H"},
        ),
    ]
    width: Annotated[
        int | None,
        replace(
            _SIDE,
            of_model=lambda spec: spec.default_size[1],
            flags=("--width",),
            other_flags=("-W", "-w"),
            other_names={"kerascv": "img_width", "compvis": "W"},
        ),
    ]
    eta: Annotated[
        float,
        Argument(
            kind="real",
            targets=(PYTHON,),
            default=0.0,
            low=0,
            high=1,
            hint="0 means no fresh noise.",
            flags=("--eta",),
            other_names={"compvis": "ddim_eta", "webui": "Eta DDIM"},
            help="fresh noise per step, for ddim and tcd",
        ),
    ]
    on_long: Annotated[
        str,
        Argument(
            kind="choice",
            targets=(PYTHON, DEVICE),
            default="truncate",
            choices=("truncate", "error"),
            in_recipe=False,
            help='"truncate" cuts a prompt that is too long and warns, "error" raises `ValueError`',
        ),
    ]


class SourceArguments(TypedDict, total=False):
    """What an image is made of beside its prompt, given by position."""

    image: Annotated[
        Any,
        Argument(
            kind="image",
            targets=(PYTHON,),
            tasks=(IMAGE_TO_IMAGE,),
            required=True,
            in_recipe=False,  # which has its hash
            flags=("--image",),
            metavar="FILE",
            other_flags=("--init-img", "--init-image"),
            other_names={"compvis": "init_img"},
            help="the image to begin with",
        ),
    ]


class EditArguments(TypedDict, total=False):
    """What is given by name where an image is made of another one."""

    strength: Annotated[
        float,
        Argument(
            kind="real",
            targets=(PYTHON,),
            tasks=(IMAGE_TO_IMAGE,),
            default=0.8,
            low=0,
            high=1,
            hint="0 keeps the image, 1 keeps little of it.",
            flags=("--strength",),
            help="how much of the image may change: the share of the steps that are made",
        ),
    ]
    fit: Annotated[
        str,
        Argument(
            kind="choice",
            targets=(PYTHON,),
            tasks=(IMAGE_TO_IMAGE,),
            default="crop",
            choices=("crop", "pad", "stretch"),
            flags=("--fit",),
            help="how an image of another shape gets the size of the result: cropped, with a white border, or stretched",
        ),
    ]
    sample_image: Annotated[
        bool,
        Argument(
            kind="switch",
            targets=(PYTHON,),
            tasks=(IMAGE_TO_IMAGE,),
            default=True,
            help="draws the image's latents from the encoder's distribution, with noise of the seed; False takes its mean",
        ),
    ]


def rows_of(kind: type) -> dict[str, tuple[Any, Any]]:
    """Returns each field of a TypedDict with its type in Python and its row."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items()}


def _table(*kinds: type) -> dict[str, Argument]:
    rows = {name: row for kind in kinds for name, (_, row) in rows_of(kind).items()}
    return dict(sorted(rows.items(), key=lambda item: item[1].kind != "text"))  # recipes and commands begin with the texts


ARGUMENTS = _table(PromptArguments, SourceArguments, GuidanceArguments, ImageArguments, EditArguments)


def arguments_of(target: str, task: str = TEXT_TO_IMAGE) -> dict[str, Argument]:
    """Returns the rows that apply to a target and a task."""
    return {name: row for name, row in ARGUMENTS.items() if target in row.targets and task in row.tasks}


def columns() -> dict[str, str]:
    """Returns the graph inputs of a request, and their types."""
    return {name: row.column for name, row in arguments_of(GRAPH).items() if row.column}


def model_defaults(spec: Any) -> dict[str, Any]:
    """Returns the values that a model has for arguments, of its spec."""
    return {name: row.of_model(spec) for name, row in ARGUMENTS.items() if row.of_model is not None}


def names_elsewhere(*programs: str) -> dict[str, str]:
    """Returns the names that other programs have for arguments, all programs' by default, with ours."""
    return {
        theirs: name
        for name, row in ARGUMENTS.items()
        for program, theirs in row.other_names.items()
        if not programs or program in programs
    }


def with_option(names: Iterable[str] = ARGUMENTS) -> dict[str, Argument]:
    """Returns the rows that have an option of the command line."""
    return {name: ARGUMENTS[name] for name in names if ARGUMENTS[name].flags}
