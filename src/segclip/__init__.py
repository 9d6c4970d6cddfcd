"""SegCLIP at scale."""
