"""From object storage to batches: shards, superpixels, order, samples, loader; generated captioned scenes."""
