"""Version of the package; it needs no package metadata, so an uninstalled checkout has it too."""

__version__ = "0.1.0"
