"""The data side: upstream corpora become records, records become shards, shards become a scheduled stream.

Plain generators and functions; no torch, no ray, no cluster. Usable alone in anybody's training loop.
"""
