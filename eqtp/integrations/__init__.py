"""Where eqtp takes over inside models of other libraries; a file per library, imported when one of its modules is
met."""
