"""Models by name: load, save, push to the Hub, the registry and the model card."""

from miniclip.hub.loading import export, find_checkpoint, fresh, list_models, load, push_to_hub, save

__all__ = ["export", "find_checkpoint", "fresh", "list_models", "load", "push_to_hub", "save"]
