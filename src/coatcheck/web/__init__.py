"""Where requests enter and answers leave: one thin adapter a framework or interface."""
