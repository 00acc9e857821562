"""The Megatron-Core backbone: the only package that imports megatron. `architecture` and `layout` are free of torch."""

import warnings

# Megatron-Core says at import, once a module, that Transformer Engine and apex are missing; `r1mega doctor` says it once and what it means.
warnings.filterwarnings("ignore", message="(Transformer Engine and Apex|Apex) (are|is) not installed", category=UserWarning)
