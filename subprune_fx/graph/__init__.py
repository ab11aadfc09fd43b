"""The dependency graph: labels that travel, the op table, and the channel groups. Knows no framework."""
