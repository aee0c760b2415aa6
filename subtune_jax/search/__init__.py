"""Which layers? Profiles, greedy searches and races over sets of blocks, exact and resumable.

SubTuning (Kaplun et al., arXiv 2302.06354), section 2 and algorithm 1.
"""
