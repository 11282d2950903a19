"""Every model of the package: importing them fills the table of `models.base`."""

from . import autoencoder, framed, original, pixel, seeded, seeded_sets, set_predictor  # noqa: F401
