"""Which seeds there are; apart, so that the command line knows it without torch."""

SEEDS = 2**63
"""How many, from 0: generators take signed numbers of 64 bits."""
