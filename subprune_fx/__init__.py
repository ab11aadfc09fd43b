"""subprune_fx: data-efficient structured pruning as a compiler pass."""
