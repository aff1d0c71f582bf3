"""The search's control: observe, decide, act; the only part that knows all the others."""
