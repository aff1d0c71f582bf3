"""What a run keeps on disk: names, durable writes, the journal and the score tables."""
