"""From object storage to batches: shards, superpixels, order, samples, loader, and a generator of captioned scenes."""
