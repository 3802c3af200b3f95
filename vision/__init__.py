"""Define a model: taxonomy, manifest, images, network, bundle, engine, decision and metrics.

Everything that training and serving must agree on lives here, once.
"""

__version__ = "0.1.0"
