"""Stripe's objects: one file each, its endpoints in the order of an object's life."""
