"""Numbers about candidates: transfer rates, intervals, trade-offs; numpy in, numpy out."""
