"""The command line, `subprune-compile`."""

if __name__ != "subprune_fx.cli":
    raise ImportError("import subprune_fx.cli, not cli")
