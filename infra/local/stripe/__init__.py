"""A Stripe for one machine that keeps Stripe's promises about idempotency keys, and judges how much money moved.

Use it in-process (`infra.local.stripe.engine.Engine`) or as a program (`python -m infra.local.stripe`). See README.md.
"""
