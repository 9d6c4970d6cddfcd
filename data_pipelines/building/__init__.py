"""Shard sets built of one's own pictures and captions: ``segclip-shards build``, ``merge`` and ``superpixels``."""
