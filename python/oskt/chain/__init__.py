"""Weight chains: one, several of one teacher, their norm statistics and numerical checks."""

from oskt.chain.ladder import ChainLadder
from oskt.chain.weight_chain import KINDS, STATISTICS, VECTORS, WEIGHTS, WeightChain

__all__ = ["KINDS", "STATISTICS", "VECTORS", "WEIGHTS", "ChainLadder", "WeightChain"]
