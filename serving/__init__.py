"""The server that goes whole into every image. It knows nothing of the factory."""

__version__ = "0.1.0"
