"""The compiler passes, one stage a file."""

if __name__ != "subprune_fx.passes":
    raise ImportError("import subprune_fx.passes, not passes")
