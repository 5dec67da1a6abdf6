"""The command line: options and words; the work is in the packages below."""

from tuner.cli.app import commands, main

__all__ = ["commands", "main"]
