"""The shipped shells in a world: middleware, sessions, driver, mending, links, session servers; and browsers."""
