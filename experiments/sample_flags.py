"""The flags of ``experiments.sample``, for the command and for those who make a job of it."""

from __future__ import annotations

import functools

from absl import flags

from experiments import processes
from wanjax import prompt_embeddings, solvers
from wanjax.denoise import HOLDING, PASSES
from wanjax.lora_experts import LORA_MODES

flags.disclaim_key_flags()  # the flags are those of the launcher that calls define(), whose --help shows them


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines them."""
    string, integer, number, boolean, choice = (functools.partial(kind, flag_values=values) for kind in (
        flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_bool,
        flags.DEFINE_enum))  # fmt: skip
    string("checkpoint", None, "A workdir, one expert's or step's folder, or a released pipeline's root.")
    string("prompt", None, "One prompt.")
    string("prompts", None, "File of prompts, .txt or .jsonl.")
    string("image", None, "Picture that the clip starts from, for image-to-video checkpoints.")
    string("last_image", None, "Picture that the clip ends with.")
    string("out", None, "Folder of the clips; for one prompt also a file that ends in .mp4.")
    choice("weights", "ema", ["ema", "raw"], "Averaged over training, or as they are.")
    integer("seed", 0, "Of the first clip; the next ones count up.", lower_bound=0)
    integer("batch", 1, "Clips denoised together; more is faster and takes more memory.", lower_bound=1)
    choice("holding", "auto", HOLDING, "What is on the devices at a time: experts, or blocks of one.")
    choice("passes", "auto", PASSES, "With guidance: both answers at once, or in two passes.")
    integer("group", 0, "Clips that are finished before others are begun, each expert read for them; 0 for all.",
            lower_bound=0)  # fmt: skip
    string("mesh", "", "Devices by axis, such as seq=4, those of all processes; one device by default.")
    processes.define(values)
    integer("stopped_code", 1, "Exit code after SIGTERM, finished clips kept; a scheduler that is to start the same "
            "command again needs one that it knows.")  # fmt: skip
    string("text_cache", str(prompt_embeddings.default_cache()), "Folder of embeddings; empty for none.")
    boolean("correct", False, "Take flicker of exposure and colour out of each clip.")
    string("lora_high", None, "LoRA files for the high-noise expert: file[:weight],...")
    string("lora_low", None, "LoRA files for the low-noise expert: file[:weight],...")
    choice("lora_mode", "into", LORA_MODES, "Merged into the weights, or kept beside and added at use.")
    choice("solver", None, solvers.NAMES, "Default: the checkpoint's own, as for all settings below.")
    choice("grid", None, solvers.GRIDS, "Noise levels of the solver; distilled for few-step weights.")
    integer("steps", None, "Calls of the networks.")
    number("shift", None, "Of the noise levels; higher spends more steps at high noise.")
    number("guidance_high", None, "Guidance scale of the high-noise expert; 1 is none.")
    number("guidance_low", None, "Guidance scale of the low-noise expert; 1 is none.")
    number("boundary", None, "Noise level from which on the high-noise expert is at work.")
    string("negative_prompt", None, "What guidance leads away from.")
    integer("frames", None, "Frames per clip, 4n + 1.")
    integer("height", None, "Height in pixels.")
    integer("width", None, "Width in pixels.")
    number("fps", None, "Frames per second of the file.")
    flags.mark_flags_as_required(["checkpoint", "out"], values)
    flags.mark_flags_as_mutual_exclusive(["prompt", "prompts"], required=True, flag_values=values)
