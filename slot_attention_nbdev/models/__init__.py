"""Every model of the package: importing them fills the table of `models.base`."""

from . import autoencoder, framed, framed_sets, original, pixel, set_predictor  # noqa: F401
