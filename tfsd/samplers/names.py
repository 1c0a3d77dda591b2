"""The names of our samplers in other programs."""

# The names that AUTOMATIC1111's web UI, which most other tools follow, gives to our samplers.
COMMUNITY_NAMES: dict[str, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "lms_karras": "LMS Karras",
    "euler": "Euler",
    "euler_karras": "Euler Karras",
    "euler_ancestral": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
}

# Names that users of other programs know: CompVis' scripts, k-diffusion, web UIs, diffusers. `find_sampler` ignores case.
ALIASES: dict[str, str] = {
    **{name: key for key, name in COMMUNITY_NAMES.items() if name.lower() != key},
    "k_lms": "lms",
    "k_lms_karras": "lms_karras",
    "k_euler": "euler",
    "k_euler_karras": "euler_karras",
    "k_euler_a": "euler_ancestral",
    "k_euler_ancestral": "euler_ancestral",
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpmpp_2m_karras": "dpmpp_2m_karras",
    "euler_a": "euler_ancestral",
    "euler ancestral": "euler_ancestral",
    "dpm++_2m": "dpmpp_2m",
    "dpm++_2m_karras": "dpmpp_2m_karras",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
