"""modelfs: model repositories as local files, every byte checked before it is handed out."""

__version__ = "0.1.0"
