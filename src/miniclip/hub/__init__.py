"""Models by name: loading, saving, the Hub, the registry and the model card."""

from miniclip.hub.exporting import export
from miniclip.hub.loading import find_checkpoint, fresh, load
from miniclip.hub.push import push_to_hub
from miniclip.hub.registry import list_models
from miniclip.hub.saving import save

__all__ = ["export", "find_checkpoint", "fresh", "list_models", "load", "push_to_hub", "save"]
