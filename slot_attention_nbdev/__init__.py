"""Slot Attention: the module, two models built on it, and trained weights by name."""

__version__ = "0.1.0"
__all__ = ["SetPredictor", "SlotAttention", "SlotAttentionAutoEncoder", "load_pretrained"]


def __getattr__(name):
    "A public name, imported at its first use: importing the package imports nothing else."
    if name == "SlotAttention":
        from .nn.slot_attention import SlotAttention as found
    elif name == "SlotAttentionAutoEncoder":
        from .models.autoencoder import SlotAttentionAutoEncoder as found
    elif name == "SetPredictor":
        from .models.set_predictor import SetPredictor as found
    elif name == "load_pretrained":
        from .models.base import load_pretrained as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__():
    "The names of this module, those that are not imported yet among them."
    return sorted({*globals(), *__all__})
