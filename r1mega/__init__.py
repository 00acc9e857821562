"""r1mega: the DeepSeek-R1 recipe as one resumable graph on Megatron-Core."""

from r1mega.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
