"""Front ends: each turns a framework's graph into the steps that `subprune_fx.graph` reads."""
