"""The local stack: emulators, the Stripe double, and the functions, on loopback."""
