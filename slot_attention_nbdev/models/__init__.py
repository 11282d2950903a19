"""Every model of the package: importing them fills the table of `models.base`."""

from . import (  # noqa: F401
    after,
    autoencoder,
    framed,
    framed_sets,
    iodine,
    iodine_small,
    monet,
    original,
    pixel,
    set_heads,
    set_predictor,
    shaped,
    slot_mlp,
)
