"""What the functions share: the pure core, the adapters around it, and the protocol between them."""

__version__ = "0.1.0"
